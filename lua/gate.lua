-- gate.lua: let a chunk of a batch in, or shut it out. After order.lua.
--
-- The first command of a transaction; the chunk's events follow as plain XADDs, under ids that
-- their sender chose. To add them by submit.lua costs Redis half as much again. They must not go in
-- if the chunk is there already, if the one before it is not, or if a stream has an id by now that
-- is not before theirs. Nothing calls off a transaction from within, but XADD refuses an id that is
-- not greater than all before it: to shut the chunk out, both streams are told that its last id was
-- given already.
--
-- KEYS  1 requests (stream)   2 returns (stream)   3 the chunk (string)
--       4 the chunk before it (string; not for the first)
-- ARGV  1 the first event's id   2 the last event's id
--       3 how long the chunk is kept, in ms   4 what is kept of it
-- Returns {"OPEN"} | {"SHUT"}
--
-- Should a command in here fail, the events would go in and not be known to be there. What is needed
-- to let them in, submit.lua has done for a chunk before; the sender asks beforehand whether it
-- may XSETID and XDEL.

local requests, returns, chunk, chunk_before = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first, last = ARGV[1], ARGV[2]

-- The id that a stream gave last; none if there is no stream; false for something else.
local function top(stream)
  local kind = redis.call('TYPE', stream).ok
  if kind ~= 'stream' then
    return kind == 'none' and '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for field = 1, #info, 2 do
    if info[field] == 'last-generated-id' then
      return info[field + 1], true
    end
  end
end

local function shut_out(stream)
  local given, exists = top(stream)
  if given and before(given, last) then
    if not exists then
      redis.call('XADD', stream, '0-1', 'not', 'an event')
      redis.call('XDEL', stream, '0-1')
    end
    redis.call('XSETID', stream, last)
  end
end

local in_turn = not redis.call('GET', chunk) and (not chunk_before or redis.call('GET', chunk_before))
local requests_top, returns_top = top(requests), top(returns)
if in_turn and requests_top and returns_top and before(requests_top, first)
  and before(returns_top, first) then
  redis.call('SET', chunk, ARGV[4], 'PX', ARGV[3])
  return {'OPEN'}
end
shut_out(requests)
shut_out(returns)
return {'SHUT'}
