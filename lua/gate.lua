-- gate.lua: let a chunk of a batch in, or shut it out. After order.lua and last_given.lua.
--
-- In a transaction, behind a SET NX of the chunk's key to a draft, before the chunk's events as plain
-- XADDs, under ids that their sender chose. To add them by submit.lua costs Redis half as much again.
-- They must not go in if the chunk is there already, if the one before it is not, or if a stream has
-- an id by now that is not before theirs. Nothing calls off a transaction from within, but XADD
-- refuses an id that is not greater than all before it: to shut the chunk out, both streams are told
-- that its last id was given already.
--
-- KEYS  1 requests (stream)   2 returns (stream)   3 the chunk (string)
--       4 the chunk before it (string; not for the first)
-- ARGV  1 the first event's id   2 the last event's id
--       3 the draft, which no other sender writes   4 what is kept of the chunk
-- Returns {"OPEN"} | {"SHUT"}
--
-- Permissions can be taken away while the transaction is being queued; each command is then refused
-- by itself, and the others run. If it is this script that is refused, the events go in all the same:
-- the draft that is left under the chunk's key tells whoever sends them again. (Should another sender or
-- another run of the batch have got ahead in that very instant too, some of them are refused or in twice,
-- and nothing tells.) Within it no error is raised: whatever fails shuts the chunk out, and submit.lua will
-- tell why. In one transaction permissions do not change.

local requests, returns, chunk, chunk_before = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first, last = ARGV[1], ARGV[2]

-- What a command answers; nil if it is an error.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
end

-- The id that a stream gave last, and whether there is a stream; nil for something else, or where that
-- cannot be told.
local function top(stream)
  local kind = try('TYPE', stream)
  if kind and kind.ok == 'none' then
    return '0-0'
  end
  local given = last_given(try('XINFO', 'STREAM', stream) or {})
  return given, given ~= nil
end

-- Whether the events behind us may go in, as far as permissions and memory go: 0-0 is refused only
-- for being no id.
local function takes_events(stream)
  local reply = redis.pcall('XADD', stream, '0-0', 'not', 'an event')
  return type(reply) == 'table' and string.find(reply.err or '', '0-0', 1, true)
end

local function shut_out(stream)
  local given, exists = top(stream)
  if given and not before(given, last) then
    return
  end
  if exists and try('XSETID', stream, last) then
    return
  end
  -- Who may not even XADD cannot add the events either. If it may not XDEL, what stays is no event
  -- and ends in the dead letters.
  if try('XADD', stream, last, 'not', 'an event') then
    try('XDEL', stream, last)
  end
end

-- Reads what is there by writing, for which the permission is known to be there if a draft is.
local there = try('SET', chunk, ARGV[4], 'XX', 'GET', 'KEEPTTL')
local is_ours = there == ARGV[3]
local requests_top, returns_top = top(requests), top(returns)
if is_ours and (not chunk_before or #(try('GET', chunk_before) or '') > 0)
  and requests_top and before(requests_top, first)
  and returns_top and before(returns_top, first)
  and takes_events(requests) and takes_events(returns) then
  return {'OPEN'}
end
if is_ours then
  if not try('DEL', chunk) then
    -- Who reads an empty one takes it for none.
    try('SET', chunk, '', 'PX', 1)
  end
elseif there then
  try('SET', chunk, there, 'KEEPTTL')
end
shut_out(requests)
shut_out(returns)
return {'SHUT'}
