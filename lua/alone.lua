-- alone.lua: lending to a request that comes alone and gets all that it asks for. Not a script of its
-- own: it is put in front of decide.lua, whose KEYS and ARGV it sees.
--
-- decide.lua does the same for any number of events of every kind, with tables of what it reads and
-- changes, and with functions for what may come up. For one event it takes longer to make those than
-- to run all of Redis' commands; and where an event comes alone, somebody waits for it. So the
-- commonest kind is decided here, to the same effect. Whatever else there is to be said of an event,
-- it is left to decide.lua: nothing is written here before all is known.

-- Lends to the request of a call for whose books ShelvingService has just said "yes"; `tell` is
-- decide.lua's. Returns the reply. nil if there is more in the call than one such request, or anything
-- in the way: then nothing was done.
local function lend_alone(tell)
  local n, answer_ms = string.match(ARGV[13] or '', '^request (%d+) fetched (%d+) sure$')
  local limit = tonumber(ARGV[3])
  n = tonumber(n)
  -- The form is there only if no consumers are named in front of it.
  if not n or #ARGV ~= 15 + n or ARGV[11] ~= '0' or ARGV[12] ~= '0' then
    return nil
  end
  local id, user, count, reservation = ARGV[14], ARGV[15], KEYS[12], KEYS[13]

  -- Nothing but a count: no tie, and nothing reserved by the reference application.
  local in_hand = 0
  local number_of_keys = redis.call('EXISTS', count, KEYS[9], reservation)
  if number_of_keys > 0 then
    -- MGET takes a key of a wrong type for an absent one, GET raises an error.
    local text = redis.call('MGET', count)[1]
    in_hand = number_of_keys == 1 and text and tonumber(string.match(text, '^%d$'))
  end
  if not in_hand or in_hand + n > limit then
    return nil
  end
  in_hand = in_hand + n

  local books = {unpack(ARGV, 16)}
  local loans = redis.call('HMGET', KEYS[5], unpack(books))
  local states = redis.call('HMGET', KEYS[6], unpack(books))
  local stored = redis.call('SMISMEMBER', KEYS[7], unpack(books))
  local of_user, is_new, new_loans, new_states = {}, {}, {}, {}
  for k = 1, n do
    local book = books[k]
    if loans[k] or states[k] or stored[k] == 1 then
      return nil
    end
    of_user[k], is_new[book] = book, true
    new_loans[2 * k - 1], new_loans[2 * k] = book, user
    new_states[2 * k - 1], new_states[2 * k] = book, '=' .. id
  end
  local noted = 0
  for book in string.gmatch(redis.call('HGET', KEYS[10], user) or '', '[^,]+') do
    noted = noted + 1
    if not is_new[book] then
      of_user[#of_user + 1] = book
    end
  end
  -- With more than a user may have, some are not true any more.
  if noted + n > limit then
    return nil
  end

  -- As in decide.lua, a wrong type of what is shared must show before anything is written.
  redis.call('XLEN', KEYS[2])
  redis.call('XLEN', KEYS[4])
  redis.call('XTRIM', KEYS[8], 'MAXLEN', '~', ARGV[4])
  if redis.call('XACK', KEYS[2], ARGV[5], id) == 0 then
    return {{'STALE'}}
  end
  local list = table.concat(books, ',')
  -- There is no fourteenth key if no answer is wished.
  tell(KEYS[14], answer_ms, 'event_id', id, 'action', 'request', 'user_id', user,
    'outcome', 'accepted', 'book_ids', list, 'in_hand', in_hand)
  redis.call('HSET', KEYS[5], unpack(new_loans))
  redis.call('HSET', KEYS[6], unpack(new_states))
  redis.call('HSET', KEYS[10], user, table.concat(of_user, ','))
  redis.call('SET', count, in_hand)
  if ARGV[7] ~= 'keep' then
    redis.call('XDEL', KEYS[2], id)
  end
  redis.pcall('PUBLISH', ARGV[9], ARGV[8] .. '\n' .. user .. ',' .. list)
  return {in_hand}
end
