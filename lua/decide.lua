-- decide.lua: work on requests and returns, in the order given, as far as each can go now.
--
-- After order.lua. LendingService's one script. For each event it either
--   reserves the books that only ShelvingService can know about, and asks for them (FETCH),
--   puts back what the event has reserved, because a refusal would be too early (WAIT), or
--   commits: effect, outcome, hand-off to shelving, answer, XACK and XDEL together (DONE).
-- A request whose books were FETCHed comes a second time with ShelvingService's answers.
--
-- KEYS  1 the instance's lock       2 requests (stream)      3 returns (stream)
--       4 hand-offs (stream)        5 loans (hash)           6 book states (hash)
--       7 automated storage (set)   8 outcomes (stream)      9 ties (hash)
--       then for each event: the user's count (string), the reservation that the reference
--       application may have left (set), and, if an answer is wished, the answer (list)
-- ARGV  1 token of the lease        2 storage capacity       3 most books a user may have
--       4 outcomes to keep          5 group of lending       6 group of shelving
--       7 "keep" or "delete" decided events
--       8 n, then n consumers that hold up no refusal (silent instances without a lease)
--       . m, then m consumers that run the reference application
--       then for each event:
--         "request" or "return", event id, user id,
--         milliseconds to keep the answer, or "" if none is wished,
--         "", the doubt that an earlier FETCH gave, or "no" after WAIT "no",
--         "" or how sure a "no" of shelving is: "certain" or "in_doubt",
--         number of books, the books, and, if "certain" or "in_doubt", for each book "yes", "no"
--         or "" (not asked)
-- Returns {"FENCED"}, or for each event one of
--       {"FETCH", doubt, book, ...}       doubt is "" or goes into the next try, see above
--       {"WAIT", "older" | "book" | "doubt" | "no"}   "no": shelving has given a certain "no"
--       {"DONE", name, value, ...}        the outcome's fields
--       {"STALE"}                         not pending any more: decided by somebody else
--       {"FAILED", cause}                 cannot be worked on: to be dead-lettered
--
-- Lua has no rollback: everything is read and every type is checked before the first write, and
-- what is changed is changed in memory first and written at the end (I1, I2, I3, I4). Within one
-- script, reads after an event's commit go by the memory. A refusal waits for what is older (I8).

local lock, requests, returns, handoffs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local loans_key, states_key, storage_key = KEYS[5], KEYS[6], KEYS[7]
local outcomes, ties = KEYS[8], KEYS[9]
local capacity, limit, outcomes_kept = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local lending_group, shelving_group, keep_events = ARGV[5], ARGV[6], ARGV[7] == 'keep'

if redis.call('GET', lock) ~= ARGV[1] then
  return {'FENCED'}
end

---- Arguments to tables.

local next_arg, next_key = 8, 10
local function take()
  next_arg = next_arg + 1
  return ARGV[next_arg - 1]
end
local function take_names()
  local names = {}
  for n = 1, tonumber(take()) do
    names[n] = take()
  end
  return names
end

local silent = {}
for _, name in ipairs(take_names()) do
  silent[name] = true
end
local reference = take_names()

local events, books, is_book = {}, {}, {} -- the books of all events, each once
local counts, is_count, temps = {}, {}, {}
while next_arg <= #ARGV do
  local e = {
    action = take(), id = take(), user = take(), answer_ms = take(), doubt = take(),
    sure = take(), books = {}, answers = {}, reserved = {},
  }
  for n = 1, tonumber(take()) do
    local book = take()
    e.books[n] = book
    if not is_book[book] then
      is_book[book] = true
      books[#books + 1] = book
    end
  end
  if e.sure ~= '' then
    for n = 1, #e.books do
      e.answers[n] = take()
    end
  end
  e.stream = e.action == 'request' and requests or returns
  e.count, e.temp = KEYS[next_key], KEYS[next_key + 1]
  next_key = next_key + 2
  if e.answer_ms ~= '' then
    e.answer = KEYS[next_key]
    next_key = next_key + 1
  end
  if not is_count[e.count] then
    is_count[e.count] = true
    counts[#counts + 1] = e.count
  end
  if e.action == 'request' then
    temps[#temps + 1] = e.temp
  end
  events[#events + 1] = e
end

---- Everything that is read before the first write.

-- Lua's stack bounds the arguments of one call.
local SLICE = 1000
local function in_slices(list, call)
  for first = 1, #list, SLICE do
    local last = math.min(first + SLICE - 1, #list)
    call(first, last)
  end
end

local loan, state, stored, in_hand, broken = {}, {}, {}, {}, {}
in_slices(books, function(first, last)
  local lent = redis.call('HMGET', loans_key, unpack(books, first, last))
  local states = redis.call('HMGET', states_key, unpack(books, first, last))
  local in_storage = redis.call('SMISMEMBER', storage_key, unpack(books, first, last))
  for n = first, last do
    local book, at = books[n], n - first + 1
    loan[book] = lent[at] or nil
    state[book] = states[at] or nil
    stored[book] = in_storage[at] == 1
  end
end)

in_slices(counts, function(first, last)
  local absent = {}
  for n, value in ipairs(redis.call('MGET', unpack(counts, first, last))) do
    local key = counts[first + n - 1]
    if not value then
      absent[#absent + 1] = key
      in_hand[key] = 0
    elseif string.match(value, '^%-?%d+$') and #value < 10 then
      in_hand[key] = tonumber(value)
    else
      broken[key] = 'count_not_a_number'
    end
  end
  -- MGET takes a key of another type for an absent one.
  if #absent > 0 and redis.call('EXISTS', unpack(absent)) > 0 then
    for _, key in ipairs(absent) do
      if redis.call('EXISTS', key) == 1 then
        broken[key] = 'count_of_wrong_type'
      end
    end
  end
end)

-- Reservations are left only by the reference application: nearly always there are none.
if #temps > 0 and redis.call('EXISTS', unpack(temps)) > 0 then
  for _, e in ipairs(events) do
    if e.action == 'request' then
      local of_type = redis.call('TYPE', e.temp).ok
      if of_type == 'set' then
        e.has_temp, e.extra = true, {}
        local asked_for = {}
        for _, book in ipairs(e.books) do
          asked_for[book] = true
        end
        for _, book in ipairs(redis.call('SMEMBERS', e.temp)) do
          if asked_for[book] then
            e.reserved[book] = true
          elseif not redis.call('HGET', loans_key, book) then
            e.extra[#e.extra + 1] = book
          end
        end
      elseif of_type ~= 'none' then
        broken[e.temp] = 'reservation_of_wrong_type'
      end
    end
  end
end

local room = capacity - redis.call('SCARD', storage_key)
-- A wrong type here must show before anything is written.
for _, stream in ipairs({requests, returns, handoffs, outcomes}) do
  redis.call('XLEN', stream)
end
redis.call('HLEN', ties)

---- What is changed in memory, to be written at the end.

local changed = {loan = {}, state = {}, stored = {}, in_hand = {}}
local function set(what, values, key, value)
  values[key] = value
  changed[what][key] = true
end

local decided, decided_of = {}, {[requests] = {}, [returns] = {}}

---- Order (I8). Looked up only when something is about to be refused. These run between writes:
---- they must not raise an error, so every call is a pcall and a failure means "wait".

-- Whether event a comes before event b in the order of ids, at equal ids the request first.
local function precedes(a_id, a_action, b_id, b_action)
  if a_id == b_id then
    return a_action == 'request' and b_action == 'return'
  end
  return before(a_id, b_id)
end

local oldest_known = {}
-- The oldest undecided event of a stream: pending, or not delivered yet; "" if there is none, nil
-- if that could not be found out. Pending entries of silent instances are passed over.
local function oldest(stream)
  local known = oldest_known[stream]
  if known and not decided[stream .. known] then
    return known
  end
  local found, from = nil, '-'
  while not found do
    local page = redis.pcall('XPENDING', stream, lending_group, from, '+', next(silent) and 100 or 1)
    if page.err then
      return nil
    end
    for _, entry in ipairs(page) do
      if not found and not silent[entry[2]] then
        found = entry[1]
      end
    end
    if #page == 0 or not next(silent) then
      break
    end
    from = '(' .. page[#page][1]
  end
  if not found then
    local group = group_of(stream, lending_group)
    if not group then
      return nil
    end
    local entries = redis.pcall('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
    if entries.err then
      return nil
    end
    found = entries[1] and entries[1][1] or ''
  end
  oldest_known[stream] = found
  return found
end

-- More events than this in one millisecond of one stream are not waited for as one: a bound on
-- the work of one script. Redis takes a few hundred events in a millisecond.
local MOST_TIES = 1000
local TIES_TTL_S = 60

local function other_stream(e)
  if e.action == 'request' then
    return returns, 'return'
  end
  return requests, 'request'
end

-- Whether all undecided events of the other stream in e's millisecond are known to wait for e.
local function all_tied_to(e, ms)
  local stream, action = other_stream(e)
  if redis.call('HGET', ties, '#front') ~= e.action .. ':' .. e.id then
    return false
  end
  local first, last = ms .. '-0', ms .. '-18446744073709551615'
  local pending = redis.pcall('XPENDING', stream, lending_group, first, last, MOST_TIES)
  local group = group_of(stream, lending_group)
  if pending.err or not group then
    return false
  end
  if #pending >= MOST_TIES then
    return true
  end
  local others = {}
  for _, entry in ipairs(pending) do
    if not silent[entry[2]] then
      others[#others + 1] = action .. ':' .. entry[1]
    end
  end
  if #others > 0 then
    for _, tied in ipairs(redis.call('HMGET', ties, unpack(others))) do
      if not tied then
        return false
      end
    end
  end
  local delivered = group['last-delivered-id']
  if before(delivered, first) then
    return #redis.call('XRANGE', stream, first, last, 'COUNT', 1) == 0
  elseif before(delivered, last) then
    return #redis.call('XRANGE', stream, '(' .. delivered, last, 'COUNT', 1) == 0
  end
  return true
end

-- Whether nothing older than e is undecided. Events of the two streams in one millisecond cannot
-- be told apart: e waits for those as well, unless they wait only for e and e comes first.
-- Else remembers in `ties` that e waits, for the event in front to see.
local function nothing_older(e)
  local own, other = oldest(e.stream), nil
  local stream, action = other_stream(e)
  other = oldest(stream)
  if not own or not other then
    return false
  end
  local ms = split(e.id)
  local own_first = own == '' or own == e.id or precedes(e.id, e.action, own, e.action)
  if other == '' then
    return own_first
  end
  local other_ms = split(other)
  if other_ms ~= ms then
    return own_first and smaller(ms, other_ms)
  end
  -- A tie: the front is the smallest undecided event of both streams.
  if own_first and precedes(e.id, e.action, other, action) then
    if all_tied_to(e, ms) then
      e.tied = true
      return true
    end
    return false
  end
  if own ~= '' and not own_first and precedes(own, e.action, other, action) then
    -- The front is of e's own stream: those of e's millisecond wait for it in turn.
    other, action = own, e.action
    if split(own) ~= ms then
      return false
    end
  end
  local front = action .. ':' .. other
  if redis.call('HGET', ties, '#front') ~= front then
    redis.call('DEL', ties)
    redis.call('HSET', ties, '#front', front)
  end
  redis.call('HSET', ties, e.action .. ':' .. e.id, '1')
  redis.call('EXPIRE', ties, TIES_TTL_S)
  return false
end

local shelving_known
-- {delivered = id, pending = number} of the shelving group; delivered "0-0" if there is no group.
local function shelving()
  if not shelving_known then
    local group = group_of(handoffs, shelving_group)
    shelving_known = group and {delivered = group['last-delivered-id'], pending = group.pending}
      or {delivered = '0-0', pending = 0}
  end
  return shelving_known
end

local undone_known = {}
-- Whether a hand-off is still to be done: not delivered yet, or pending.
local function undone(id)
  if undone_known[id] == nil then
    if before(shelving().delivered, id) then
      local entry = redis.pcall('XRANGE', handoffs, id, id)
      undone_known[id] = entry.err ~= nil or #entry > 0
    else
      local pending = redis.pcall('XPENDING', handoffs, shelving_group, id, id, 1)
      -- An error means that the group is gone: then nothing is pending, and what is still in the
      -- stream will be delivered again.
      undone_known[id] = pending.err == nil and #pending > 0
    end
  end
  return undone_known[id]
end

local doubt_known
-- Why a "no" of shelving could come too early: the last hand-off, if any is undone (the book may
-- be in it), and the last request delivered, if reference instances work on any (they tell
-- nobody what they have reserved). "" if there is neither.
local function doubt()
  if not doubt_known then
    local handoff, request = '-', '-'
    local top = redis.pcall('XREVRANGE', handoffs, '+', '-', 'COUNT', 1)
    top = not top.err and top[1] and top[1][1]
    if top and before(shelving().delivered, top) then
      handoff = top
    elseif shelving().pending > 0 then
      handoff = shelving().delivered
    end
    for _, name in ipairs(reference) do
      local pending = redis.pcall('XPENDING', requests, lending_group, '-', '+', 1, name)
      if pending.err or #pending > 0 then
        local group = group_of(requests, lending_group)
        request = group and group['last-delivered-id'] or '-'
      end
    end
    doubt_known = handoff == '-' and request == '-' and '' or handoff .. ' ' .. request
  end
  return doubt_known
end

-- Whether what a doubt was about has ended.
local function settled(a_doubt)
  local handoff, request = string.match(a_doubt, '^(%S+) (%S+)$')
  if handoff and handoff ~= '-' then
    local pending = redis.pcall('XPENDING', handoffs, shelving_group, '-', handoff, 1)
    if not pending.err and #pending > 0 then
      return false
    end
    if before(shelving().delivered, handoff) then
      local entries =
        redis.pcall('XRANGE', handoffs, '(' .. shelving().delivered, handoff, 'COUNT', 1)
      if entries.err or #entries > 0 then
        return false
      end
    end
  end
  if request and request ~= '-' then
    for _, name in ipairs(reference) do
      local pending = redis.pcall('XPENDING', requests, lending_group, '-', request, 1, name)
      if pending.err or #pending > 0 then
        return false
      end
    end
  end
  return true
end

---- Effects.

-- Puts books back: into automated storage while it has room, in the order given, the rest in one
-- hand-off to shelving.
local function put_back(list)
  local rest = {}
  for _, book in ipairs(list) do
    if room > 0 then
      room = room - 1
      set('stored', stored, book, true)
      set('state', state, book, nil)
    else
      rest[#rest + 1] = book
    end
  end
  if #rest > 0 then
    local id = redis.call('XADD', handoffs, '*', 'book_ids', table.concat(rest, ','))
    undone_known[id] = true
    shelving_known, doubt_known = nil, nil
    for _, book in ipairs(rest) do
      set('state', state, book, '>' .. id)
    end
  end
end

local function take_from_storage(list)
  for _, book in ipairs(list) do
    if stored[book] then
      set('stored', stored, book, false)
      room = room + 1
    end
  end
end

-- Ends every reservation of e: the books that it has are put back, those that it only asked for
-- are let go.
local function release(e, have, asked)
  for _, book in ipairs(asked) do
    set('state', state, book, nil)
  end
  if e.has_temp then
    redis.call('DEL', e.temp)
    put_back(e.extra)
    e.has_temp, e.reserved = false, {}
  end
  put_back(have)
end

-- The commit's first write. Returns false if the event is not pending any more.
local function acknowledge(e)
  if redis.call('XACK', e.stream, lending_group, e.id) == 0 then
    return false
  end
  decided[e.stream .. e.id] = true
  table.insert(decided_of[e.stream], e.id)
  return true
end

-- Writes the outcome and returns the event's reply. `lists` are pairs of a field and books.
local function conclude(e, outcome, cause, lists, effect)
  local reply = {'DONE', 'event_id', e.id, 'action', e.action, 'user_id', e.user,
    'outcome', outcome}
  if cause then
    reply[#reply + 1] = 'cause'
    reply[#reply + 1] = cause
  end
  for n = 1, #lists, 2 do
    if #lists[n + 1] > 0 then
      reply[#reply + 1] = lists[n]
      reply[#reply + 1] = table.concat(lists[n + 1], ',')
    end
  end
  reply[#reply + 1] = 'in_hand'
  reply[#reply + 1] = string.format('%d', in_hand[e.count])
  redis.call('XADD', outcomes, 'MAXLEN', '~', outcomes_kept, '*', unpack(reply, 2))
  if e.answer then
    redis.call('DEL', e.answer)
    redis.call('RPUSH', e.answer, table.concat(reply, '\n', 2))
    redis.call('PEXPIRE', e.answer, e.answer_ms)
  end
  if e.tied then
    -- What waited for e waits for the next in front, if it was refused without any effect;
    -- otherwise it has to try again.
    redis.call('HDEL', ties, e.action .. ':' .. e.id)
    local front, action = oldest(requests), 'request'
    local other = oldest(returns)
    if other and other ~= ''
      and (not front or front == '' or precedes(other, 'return', front, 'request')) then
      front, action = other, 'return'
    end
    if not effect and front and front ~= '' and split(front) == split(e.id) then
      redis.call('HSET', ties, '#front', action .. ':' .. front)
    else
      redis.call('DEL', ties)
    end
  end
  return reply
end

---- The two kinds of events.

local function try_request(e)
  local have, instant, free = {}, {}, {}           -- available, for certain or perhaps
  local asked, unknown = {}, {}                    -- reserved for e without having the book
  local mine, others, nowhere = {}, {}, {}         -- refused
  local available, blocked, in_doubt = {}, false, false
  for n, book in ipairs(e.books) do
    local is = state[book]
    local kind = is and string.sub(is, 1, 1)
    local own = kind == '?' and string.sub(is, 2) == e.id
    if loan[book] then
      if own then
        asked[#asked + 1] = book
      end
      local list = loan[book] == e.user and mine or others
      list[#list + 1] = book
    elseif e.reserved[book] then
      have[#have + 1] = book
      available[#available + 1] = book
    elseif stored[book] then
      if own then
        asked[#asked + 1] = book
      end
      instant[#instant + 1] = book
      available[#available + 1] = book
    elseif own then
      if e.answers[n] == 'yes' then
        have[#have + 1] = book
        available[#available + 1] = book
      elseif e.answers[n] == 'no' then
        asked[#asked + 1] = book
        if e.sure == 'certain' then
          nowhere[#nowhere + 1] = book
        else
          in_doubt = true
        end
      else
        unknown[#unknown + 1] = book
      end
    elseif kind == '?' or (kind == '>' and undone(string.sub(is, 2))) then
      blocked = true
    else
      free[#free + 1] = book
      available[#available + 1] = book
    end
  end
  if #unknown > 0 then
    return function()
      local reply = {'FETCH', doubt()}
      for _, book in ipairs(unknown) do
        reply[#reply + 1] = book
      end
      return reply
    end
  end

  -- After a certain "no" a refusal is foreseeable: whoever reserves and releases again and again
  -- until what is older is decided keeps others from being decided (I5).
  local told_no = e.doubt == 'no' or #nowhere > 0
  local too_many = in_hand[e.count] + #available > limit
  local refusal = blocked or in_doubt or too_many or #available < #e.books
    or told_no and #free > 0
  if refusal and (blocked or in_doubt or not nothing_older(e)) then
    return function()
      release(e, have, asked)
      return {'WAIT', in_doubt and 'doubt' or told_no and 'no' or blocked and 'book' or 'older'}
    end
  end

  if #free > 0 then
    local doubtful = e.doubt ~= '' and e.doubt ~= 'no'
    local certain = doubtful and settled(e.doubt)
    if doubtful and not certain then
      return function()
        release(e, have, asked)
        return {'WAIT', 'doubt'}
      end
    end
    return function()
      local reply = {'FETCH', certain and '' or doubt()}
      for _, book in ipairs(free) do
        set('state', state, book, '?' .. e.id)
        reply[#reply + 1] = book
      end
      return reply
    end
  end

  return function()
    if not acknowledge(e) then
      release(e, have, asked)
      return {'STALE'}
    end
    local refused =
      {'already_yours', mine, 'lent_to_another', others, 'unavailable', nowhere}
    if #available == 0 then
      release(e, have, asked)
      return conclude(e, 'denied', 'none_available', refused, #have > 0)
    end
    take_from_storage(instant)
    if too_many then
      release(e, {}, asked)
      put_back(available)
      refused[#refused + 1] = 'put_back'
      refused[#refused + 1] = available
      return conclude(e, 'denied', 'too_many_books', refused, true)
    end
    release(e, {}, asked)
    for _, book in ipairs(available) do
      set('loan', loan, book, e.user)
      set('state', state, book, '=' .. e.id)
    end
    set('in_hand', in_hand, e.count, in_hand[e.count] + #available)
    table.insert(refused, 1, available)
    table.insert(refused, 1, 'book_ids')
    return conclude(e, 'accepted', nil, refused, true)
  end
end

local function try_return(e)
  local taken_back, others, not_lent = {}, {}, {}
  local ms = split(e.id)
  for _, book in ipairs(e.books) do
    local list = not_lent
    if loan[book] == e.user then
      -- Only loans of older requests are meant. A loan without an entry is old.
      local request = string.match(state[book] or '', '^=(.*)$')
      if not request or not smaller(ms, split(request) or ms) then
        list = taken_back
      end
    elseif loan[book] then
      list = others
    end
    list[#list + 1] = book
  end

  if #taken_back < #e.books and not nothing_older(e) then
    return function()
      return {'WAIT', 'older'}
    end
  end

  return function()
    if not acknowledge(e) then
      return {'STALE'}
    end
    for _, book in ipairs(taken_back) do
      set('loan', loan, book, nil)
      set('state', state, book, nil)
    end
    if #taken_back > 0 then
      set('in_hand', in_hand, e.count, math.max(0, in_hand[e.count] - #taken_back))
      put_back(taken_back)
    end
    local lists = {'book_ids', taken_back, 'lent_to_another', others, 'not_lent', not_lent}
    local outcome = #taken_back > 0 and 'returned' or 'unchanged'
    return conclude(e, outcome, nil, lists, #taken_back > 0)
  end
end

---- All events, then what they changed.

local replies = {}
for n, e in ipairs(events) do
  local cause = broken[e.count] or broken[e.temp]
  if cause then
    replies[n] = {'FAILED', cause}
  else
    -- Only looking is guarded: what it returns is the act, which cannot fail.
    local ok, act = pcall(e.action == 'request' and try_request or try_return, e)
    if ok then
      replies[n] = act()
    else
      replies[n] = {'FAILED', 'script_error: ' .. tostring(type(act) == 'table' and act.err or act)}
    end
  end
end

local function write_hash(key, what, values)
  local fields, gone = {}, {}
  for field in pairs(changed[what]) do
    if values[field] then
      fields[#fields + 1] = field
      fields[#fields + 1] = values[field]
    else
      gone[#gone + 1] = field
    end
  end
  in_slices(fields, function(first, last)
    redis.call('HSET', key, unpack(fields, first, last))
  end)
  in_slices(gone, function(first, last)
    redis.call('HDEL', key, unpack(gone, first, last))
  end)
end

write_hash(loans_key, 'loan', loan)
write_hash(states_key, 'state', state)

local arrived, left = {}, {}
for book in pairs(changed.stored) do
  local list = stored[book] and arrived or left
  list[#list + 1] = book
end
if #left > 0 then
  redis.call('SREM', storage_key, unpack(left))
end
if #arrived > 0 then
  redis.call('SADD', storage_key, unpack(arrived))
end

local numbers = {}
for key in pairs(changed.in_hand) do
  numbers[#numbers + 1] = key
  numbers[#numbers + 1] = string.format('%d', in_hand[key])
end
in_slices(numbers, function(first, last)
  redis.call('MSET', unpack(numbers, first, last))
end)

if not keep_events then
  for stream, ids in pairs(decided_of) do
    in_slices(ids, function(first, last)
      redis.call('XDEL', stream, unpack(ids, first, last))
    end)
  end
end
return replies
