-- reject.lua: move an event that cannot be worked on to the dead letters. After order.lua.
--
-- The original fields are copied as they are; the caller need not have understood, nor even seen
-- them: the event may be what killed whoever read it.
-- What the reference application left in the event's reservation goes back. Books that a request
-- may have fetched from shelving are told first ("look"), so that shelving can take them back
-- (unfetch.lua) before the event is gone. A request or return gets its outcome.
--
-- KEYS  1 the instance's lock   2 the event's stream     3 dead letters (stream)
--       4 outcomes (stream)     5 hand-offs (stream)     6 book states (hash)
--       7 automated storage     8 loans (hash)           9 lone tries (hash)
--       10 reservation of the reference application (set)   11 the answer (list)
--       12 ties (hash)
-- ARGV  1 token of the lease    2 group                  3 event id
--       4 "request", "return" or "handoff"               5 cause
--       6 "keep" or "delete" decided events              7 storage capacity
--       8 outcomes to keep      9 milliseconds to keep the answer
--       10 "look" or "reject"  11 group of shelving      12 channel of the bell
--       13 consumer of this instance
-- Returns {"FENCED"} | {"STALE"} | {"MAY_HAVE", book, ...}
--       | {"DONE", name, value, ...} (the outcome's fields)

local stream, group, id, action = KEYS[2], ARGV[2], ARGV[3], ARGV[4]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end

---- Everything that is read, and every type, before the first write.

local of_types = {
  [KEYS[3]] = 'stream', [KEYS[4]] = 'stream', [KEYS[5]] = 'stream', [KEYS[6]] = 'hash',
  [KEYS[7]] = 'set', [KEYS[8]] = 'hash', [KEYS[9]] = 'hash', [KEYS[12]] = 'hash',
}
for key, wanted in pairs(of_types) do
  local is = redis.call('TYPE', key).ok
  if is ~= wanted and is ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. is .. ', not a ' .. wanted)
  end
end

local pending = redis.call('XPENDING', stream, group, id, id, 1)
if #pending == 0 then
  return {'STALE'}
end
local deliveries = pending[1][4]
local entry = redis.call('XRANGE', stream, id, id)[1]
local fields = entry and entry[2] or {}

local function field(name)
  for n = 1, #fields, 2 do
    if fields[n] == name then
      return fields[n + 1]
    end
  end
end

-- Whether a book's state says that it is in a hand-off that is still to be done.
local function in_transit(state)
  local handoff = string.match(state, '^>(%d+%-%d+)')
  if not handoff then
    return false
  end
  local shelving = group_of(KEYS[5], ARGV[11])
  if not shelving or before(shelving['last-delivered-id'], handoff) then
    return #redis.call('XRANGE', KEYS[5], handoff, handoff) > 0
  end
  return #redis.call('XPENDING', KEYS[5], ARGV[11], handoff, handoff, 1) > 0
end

-- Only a well-formed list of books can have been fetched: 1000 ids of 256 bytes and a comma.
local LONGEST_LIST = 257000
local reserved, may_have = {}, {}
if action == 'request' then
  local is_reserved = {}
  if redis.call('TYPE', KEYS[10]).ok == 'set' then
    for _, book in ipairs(redis.call('SMEMBERS', KEYS[10])) do
      is_reserved[book] = true
      if redis.call('HEXISTS', KEYS[8], book) == 0 then
        reserved[#reserved + 1] = book
      end
    end
  end
  local list = field('book_ids') or ''
  if #list <= LONGEST_LIST then
    for book in string.gmatch(list, '[^,]+') do
      local state = redis.call('HGET', KEYS[6], book) or ''
      local elsewhere = is_reserved[book] or redis.call('HEXISTS', KEYS[8], book) == 1
        or redis.call('SISMEMBER', KEYS[7], book) == 1
      -- What it has fetched need not be noted here: the state may be one that has no meaning any
      -- more, or another request's reservation. A book in transit is on its way to shelving as it is.
      if not elsewhere and not in_transit(state) then
        may_have[#may_have + 1] = book
      end
    end
  end
end
if ARGV[10] == 'look' then
  return {'MAY_HAVE', unpack(may_have)}
end
local room = tonumber(ARGV[7]) - redis.call('SCARD', KEYS[7])

---- The commit.

if redis.call('XACK', stream, group, id) == 0 then
  return {'STALE'}
end

-- Lua's stack bounds the arguments of one call: an event of thousands of fields is kept as several
-- letters.
local MOST_VALUES = 6000
local first = 1
repeat
  local letter = {'stream', stream, 'event_id', id, 'cause', ARGV[5],
    'deliveries', string.format('%d', deliveries)}
  for n = first, math.min(first + MOST_VALUES - 1, #fields) do
    letter[#letter + 1] = fields[n]
  end
  redis.call('XADD', KEYS[3], '*', unpack(letter))
  first = first + MOST_VALUES
until first > #fields

-- Another request that has reserved one of them may have been told that it is out for this one:
-- without its reservation it asks again.
for _, book in ipairs(may_have) do
  if string.sub(redis.call('HGET', KEYS[6], book) or '', 1, 1) == '?' then
    redis.call('HDEL', KEYS[6], book)
  end
end
local to_shelves = {}
for _, book in ipairs(reserved) do
  if room > 0 then
    room = room - 1
    redis.call('SADD', KEYS[7], book)
    redis.call('HDEL', KEYS[6], book)
  else
    to_shelves[#to_shelves + 1] = book
  end
end
if #to_shelves > 0 then
  local handoff = redis.call('XADD', KEYS[5], '*', 'book_ids', table.concat(to_shelves, ','))
  for _, book in ipairs(to_shelves) do
    redis.call('HSET', KEYS[6], book, '>' .. handoff)
  end
end
-- A return with the id of a request has no part in that request's reservation, a hand-off in none.
if action == 'request' then
  redis.call('DEL', KEYS[10])
end
redis.call('HDEL', KEYS[9], action .. ':' .. id)
-- Rare enough: whatever waits has to try again before it counts as waiting.
redis.call('DEL', KEYS[12])
if ARGV[6] ~= 'keep' then
  redis.call('XDEL', stream, id)
end

local reply = {'DONE', 'event_id', id, 'action', action}
local user = field('user_id')
-- Somebody may have put megabytes there: they are in the dead letter, once is enough.
if user and #user <= 256 then
  reply[#reply + 1] = 'user_id'
  reply[#reply + 1] = user
end
for _, more in ipairs({'outcome', 'rejected', 'cause', ARGV[5]}) do
  reply[#reply + 1] = more
end
if action ~= 'handoff' then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[8], '*', unpack(reply, 2))
  local wish = field('answer') or ''
  local is_wished = wish == 'wait' or string.find(wish, '^keep') ~= nil
  -- The answer is text, a line for each name and value.
  if is_wished and not (user and string.find(user, '\n', 1, true)) then
    redis.call('DEL', KEYS[11])
    redis.call('RPUSH', KEYS[11], table.concat(reply, '\n', 2))
    redis.call('PEXPIRE', KEYS[11], ARGV[9])
  end
end
-- Other instances may wait for this event. Who is not permitted to ring works on.
redis.pcall('PUBLISH', ARGV[12], ARGV[13])
return reply
