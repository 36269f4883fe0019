-- reject.lua: move requests or returns that cannot be worked on to the dead letters.
-- After order.lua, groups.lua and letters.lua.
--
-- LendingService's; hand-offs are given up by discard.lua. The event may be what killed whoever read it.
-- What the reference application left in an event's reservation goes back. Books that a request
-- may have fetched from shelving are told first ("look"), so that shelving can take them back
-- (unfetch.lua) before the event is gone. Each request or return gets its outcome.
--
-- KEYS  1 the instance's lock   2 the events' stream     3 dead letters (stream)
--       4 outcomes (stream)     5 hand-offs (stream)     6 book states (hash)
--       7 automated storage     8 loans (hash)           9 lone tries (hash)
--       10 ties (hash)
--       then for each event: its reservation of the reference application (set), the answer (list)
-- ARGV  1 token of the lease    2 group
--       3 "request" or "return"
--       4 "keep" or "delete" decided events              5 storage capacity
--       6 outcomes to keep      7 milliseconds to keep an answer for which the event does not say it
--       8 "look" (at one event) or "reject"              9 group of shelving
--       10 channel of the bell  11 consumer of this instance
--       12 n, then n consumers that run the reference application
--       then for each event: its id, the cause
-- Returns {"FENCED"} | {"MAY_HAVE", book, ...}
--       | {"DONE", for each event 0 (somebody else has decided it), or the user that its outcome names,
--         or 1 if it names none}: for one at least, and not for those that were left for another call,
--         since a script is not to take long
--
-- Whether an event is pending still is looked up before anything of it is written (I4).

local groups = groups()
local is_in_handoff, is_undone = groups.is_in_handoff, groups.is_undone
local stream, group, action = KEYS[2], ARGV[2], ARGV[3]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end

-- Every type, before the first write: what is read of one event while another is gone already
-- cannot fail any more.
local of_types = {
  [KEYS[2]] = 'stream', [KEYS[3]] = 'stream', [KEYS[4]] = 'stream', [KEYS[5]] = 'stream',
  [KEYS[6]] = 'hash', [KEYS[7]] = 'set', [KEYS[8]] = 'hash', [KEYS[9]] = 'hash',
  [KEYS[10]] = 'hash',
}
for key, wanted in pairs(of_types) do
  local is = redis.call('TYPE', key).ok
  if is ~= wanted and is ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. is .. ', not a ' .. wanted)
  end
end

-- Whether a book's state says that it is in a hand-off that is still to be done.
local function in_transit(state)
  local handoff = string.match(state, '^>(.*)')
  return handoff ~= nil and is_undone(KEYS[5], ARGV[9], handoff)
end

-- The value of an event's first field of that name.
local function field(fields, name)
  for n = 1, #fields, 2 do
    if fields[n] == name then
      return fields[n + 1]
    end
  end
end

-- How much of events was looked at: fields, and books, each of which costs several calls.
local work = 0

-- Only a well-formed list of books can have been fetched: 1000 ids of 256 bytes and a comma.
local LONGEST_LIST, MOST_BOOKS = 257000, 1000
local function is_too_long(list)
  return #list > LONGEST_LIST or select(2, string.gsub(list, ',', '', MOST_BOOKS)) >= MOST_BOOKS
end
-- Of a request: what a set of the reference application has reserved, and what it may have fetched.
local function belongings(fields, reservation)
  local reserved, may_have, is_reserved = {}, {}, {}
  if redis.call('TYPE', reservation).ok == 'set' then
    for _, book in ipairs(redis.call('SMEMBERS', reservation)) do
      is_reserved[book] = true
      if redis.call('HEXISTS', KEYS[8], book) == 0 then
        reserved[#reserved + 1] = book
      end
    end
  end
  local list = field(fields, 'book_ids') or ''
  if not is_too_long(list) then
    for book in string.gmatch(list, '[^,]+') do
      work = work + 1
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
  return reserved, may_have
end

-- What a request had goes back: into storage while that has room, else to shelving.
local function give_back(reserved, may_have, reservation)
  -- Another request that has reserved one of them may have been told that it is out for this one:
  -- without its reservation it asks again.
  for _, book in ipairs(may_have) do
    if string.sub(redis.call('HGET', KEYS[6], book) or '', 1, 1) == '?' then
      redis.call('HDEL', KEYS[6], book)
    end
  end
  local room = tonumber(ARGV[5]) - redis.call('SCARD', KEYS[7])
  local to_shelves = {}
  for _, book in ipairs(reserved) do
    if redis.call('SISMEMBER', KEYS[7], book) == 1
      or in_transit(redis.call('HGET', KEYS[6], book) or '') then
      -- It is back already: two requests had it reserved, as only somebody else can leave it.
    elseif room > 0 then
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
  redis.call('DEL', reservation)
end

-- How long the answer is kept, in milliseconds; nil if none is wished. As AnswerWish in src/event.rs.
local MOST_KEPT_MS = 2592000000
local function kept_ms(wish)
  if wish == 'wait' or wish == 'keep' then
    return ARGV[7]
  end
  local ms = tonumber(string.match(wish, '^keep:(%d+)$'))
  return ms and ms >= 1 and ms <= MOST_KEPT_MS and string.format('%d', ms) or nil
end

-- As MAX_ID_BYTES in src/ids.rs.
local LONGEST_USER = 256
-- Returns the user that the outcome names, or 1.
local function tell(id, cause, fields, answer)
  local outcome = {'event_id', id, 'action', action}
  local user = field(fields, 'user_id')
  -- Somebody may have put megabytes there: they are in the dead letter, once is enough.
  local is_named = user and #user <= LONGEST_USER
  if is_named then
    outcome[#outcome + 1] = 'user_id'
    outcome[#outcome + 1] = user
  end
  for _, more in ipairs({'outcome', 'rejected', 'cause', cause}) do
    outcome[#outcome + 1] = more
  end
  redis.call('XADD', KEYS[4], '*', unpack(outcome))
  local ms = kept_ms(field(fields, 'answer') or '')
  -- The answer is text, a line for each name and value.
  if ms and not (user and string.find(user, '\n', 1, true)) then
    redis.call('DEL', answer)
    redis.call('RPUSH', answer, table.concat(outcome, '\n'))
    redis.call('PEXPIRE', answer, ms)
  end
  return is_named and user or 1
end

local done, tries = {}, {}
local function reject(id, cause, reservation, answer)
  local fields, deliveries = look_up(stream, group, id)
  if not fields then
    return 0
  end
  work = work + #fields
  local reserved, may_have = {}, {}
  -- A return with the id of a request has no part in that request's reservation.
  if action == 'request' then
    reserved, may_have = belongings(fields, reservation)
  end
  redis.call('XACK', stream, group, id)
  write_letters(KEYS[3], stream, id, cause, deliveries, fields)
  if action == 'request' then
    give_back(reserved, may_have, reservation)
  end
  done[#done + 1], tries[#tries + 1] = id, action .. ':' .. id
  return tell(id, cause, fields, answer)
end

local FIRST_EVENT, FIRST_KEY = 13 + ARGV[12], 11
if ARGV[8] == 'look' then
  local fields = look_up(stream, group, ARGV[FIRST_EVENT])
  if not fields then
    return {'DONE', 0}
  end
  local id, reservation = ARGV[FIRST_EVENT], KEYS[FIRST_KEY]
  local _, may_have = belongings(fields, reservation)
  local reference = {unpack(ARGV, 13, FIRST_EVENT - 1)}
  local reserved = groups.reserved_by(stream, group, reference, reservation, id)
  local reply = {'MAY_HAVE'}
  for _, book in ipairs(may_have) do
    -- Hand-offs and reservations of the reference application leave no mark. Where there are too many
    -- hand-offs to look through, the request more likely has the book than one of those. A book that is
    -- reserved, or may be, is left alone: it will be lent by whoever has reserved it.
    if reserved and not reserved[book] and not is_in_handoff(KEYS[5], ARGV[9], book) then
      reply[#reply + 1] = book
    end
  end
  return reply
end

-- Of small events as many as there are; of large ones hardly more than one.
local MOST_WORK = 4000
local reply = {'DONE'}
for at = FIRST_EVENT, #ARGV, 2 do
  local key = FIRST_KEY + at - FIRST_EVENT
  reply[#reply + 1] = reject(ARGV[at], ARGV[at + 1], KEYS[key], KEYS[key + 1])
  if work > MOST_WORK then
    break
  end
end
if #done > 0 then
  redis.call('HDEL', KEYS[9], unpack(tries))
  -- Rare enough: whatever waits has to try again before it counts as waiting.
  redis.call('DEL', KEYS[10])
  redis.call('XTRIM', KEYS[4], 'MAXLEN', '~', ARGV[6])
  if ARGV[4] ~= 'keep' then
    redis.call('XDEL', stream, unpack(done))
  end
  -- Other instances may wait for these events. Who is not permitted to ring works on.
  redis.pcall('PUBLISH', ARGV[10], ARGV[11])
end
return reply
