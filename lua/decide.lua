-- decide.lua: work on requests and returns, in the order given, as far as each can go now.
--
-- After order.lua. LendingService's one script. For each event it either
--   commits: effect, outcome, hand-off to shelving, answer, XACK and XDEL together (DONE),
--   puts back what the event has reserved, because a refusal would be too early (WAIT), or
--   reserves books that only ShelvingService can know about, and asks for them (FETCH).
-- On its first try by an instance a request comes with ShelvingService's answers already: a "yes"
-- is always true, the book is out for this request now; a "no" names the request that has the book.
-- It is not final, since the book may have come back in the meantime: a book that is nowhere else is
-- reserved here, asked for again, and only the second "no" counts. "again" is not certain either:
-- the request may have put the book back since; so it is reserved and asked for as well, before
-- anything is refused: nobody else gets what this request has without knowing. What waits has
-- nothing and is tried without asking first, but for books of which it was told "again".
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
--         "" or the doubt that an earlier FETCH gave,
--         what ShelvingService has said of the books: "" nothing, "yes" to all of them, or how
--         final a "no" is: "first" (not at all), "in_doubt", "certain",
--         number of books, the books, and, if "first", "in_doubt" or "certain", for each book
--         "yes", "again", the id of the request that has it, or "" (not asked)
-- Returns {"FENCED"}, or for each event one of
--       {"DONE", name, value, ...}        the outcome's fields from "outcome" on
--       {"WAIT", "older" | "book" | "doubt"}
--       {"FETCH", doubt, book, ...}       doubt is "" or goes into the next try, see above
--       {"STALE"}                         not pending any more: somebody else decides it; nothing
--                                         was changed, since what it had is theirs now
--       {"FAILED", cause}                 cannot be worked on: to be dead-lettered
--
-- Lua has no rollback: everything is read and every type is checked before the first write, and
-- what is changed is changed in memory first and written at the end (I1, I2, I3, I4). Within one
-- script, reads after an event's commit go by the memory. A refusal waits for what is older (I8).
--
-- The state of a book: "?17-0" reserved by request 17-0; "=17-0" lent to request 17-0; ">17-0" on
-- its way to its shelf in hand-off 17-0, and ">17-0 16-3" if request 16-3 put it back in order to
-- wait: shelving says yes to that one until the book has arrived.

local lock, requests, returns, handoffs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local loans_key, states_key, storage_key = KEYS[5], KEYS[6], KEYS[7]
local outcomes, ties = KEYS[8], KEYS[9]
local capacity, limit, outcomes_kept = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local lending_group, shelving_group, keep_events = ARGV[5], ARGV[6], ARGV[7] == 'keep'

if redis.call('GET', lock) ~= ARGV[1] then
  return {'FENCED'}
end

---- Arguments to tables.

local at, next_key = 8, 10
local function take_names()
  local names = {}
  for n = 1, tonumber(ARGV[at]) do
    names[n] = ARGV[at + n]
  end
  at = at + 1 + #names
  return names
end

local silent = {}
for _, name in ipairs(take_names()) do
  silent[name] = true
end
local reference = take_names()

local events = {}
local books, is_book = {}, {}                      -- of all events, each once
local counts, is_count, temps = {}, {}, {}
while at <= #ARGV do
  local e = {
    action = ARGV[at], id = ARGV[at + 1], user = ARGV[at + 2], said = ARGV[at + 5], books = {},
    count = KEYS[next_key],
  }
  if ARGV[at + 3] ~= '' then
    e.answer, e.answer_ms = KEYS[next_key + 2], ARGV[at + 3]
  end
  if ARGV[at + 4] ~= '' then
    e.doubt = ARGV[at + 4]
  end
  if e.action == 'request' then
    temps[#temps + 1] = KEYS[next_key + 1]
    e.temp = KEYS[next_key + 1]
  end
  next_key = next_key + (e.answer and 3 or 2)
  if not is_count[e.count] then
    is_count[e.count] = true
    counts[#counts + 1] = e.count
  end
  local n = tonumber(ARGV[at + 6])
  at = at + 6
  for k = 1, n do
    local book = ARGV[at + k]
    e.books[k] = book
    if not is_book[book] then
      is_book[book] = true
      books[#books + 1] = book
    end
  end
  at = at + n + 1
  if e.said ~= '' and e.said ~= 'yes' then
    e.answers = {}
    for k = 1, n do
      e.answers[k] = ARGV[at + k - 1]
    end
    at = at + n
  end
  events[#events + 1] = e
end

---- Everything that is read before the first write.

-- Lua's stack bounds the arguments of one call.
local SLICE = 1000
local function in_slices(list, call)
  for first = 1, #list, SLICE do
    call(first, math.min(first + SLICE - 1, #list))
  end
end

local loan, state, stored, in_hand, broken = {}, {}, {}, {}, {}
in_slices(books, function(first, last)
  local lent = redis.call('HMGET', loans_key, unpack(books, first, last))
  local states = redis.call('HMGET', states_key, unpack(books, first, last))
  local in_storage = redis.call('SMISMEMBER', storage_key, unpack(books, first, last))
  for n = first, last do
    local book, k = books[n], n - first + 1
    if lent[k] then
      loan[book] = lent[k]
    end
    if states[k] then
      state[book] = states[k]
    end
    if in_storage[k] == 1 then
      stored[book] = true
    end
  end
end)

in_slices(counts, function(first, last)
  local absent = {}
  for n, value in ipairs(redis.call('MGET', unpack(counts, first, last))) do
    local key = counts[first + n - 1]
    if not value then
      absent[#absent + 1] = key
      in_hand[key] = 0
    elseif #value < 10 and string.match(value, '^%-?%d+$') then
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
    local of_type = e.temp and redis.call('TYPE', e.temp).ok
    if of_type == 'set' then
      e.reserved, e.extra = {}, {}
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
    elseif of_type and of_type ~= 'none' then
      broken[e.temp] = 'reservation_of_wrong_type'
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

-- Lists of what was changed, each entry once.
local changed = {loan = {}, state = {}, stored = {}, in_hand = {}}
local is_changed = {loan = {}, state = {}, stored = {}, in_hand = {}}
local function set(what, values, key, value)
  values[key] = value
  local is = is_changed[what]
  if not is[key] then
    is[key] = true
    local list = changed[what]
    list[#list + 1] = key
  end
end

local decided, decided_of = {}, {[requests] = {}, [returns] = {}}

local function stream_of(e)
  return e.action == 'request' and requests or returns
end

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
  local own = oldest(stream_of(e))
  local stream, action = other_stream(e)
  local other = oldest(stream)
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

-- Whether an entry of a stream is still to be done: not delivered yet, or pending.
local function is_undone(stream, group, delivered, id)
  if before(delivered, id) then
    local entry = redis.pcall('XRANGE', stream, id, id)
    return entry.err ~= nil or #entry > 0
  end
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  -- An error means that the group is gone: what is still in the stream will be delivered again.
  return pending.err ~= nil or #pending > 0
end

local undone_known = {}
-- Whether the hand-off that a book's state names is still to be done.
local function in_transit(is)
  local id = string.match(is, '^>(%S+)')
  if undone_known[id] == nil then
    undone_known[id] = is_undone(handoffs, shelving_group, shelving().delivered, id)
  end
  return undone_known[id]
end

-- Whether a request that shelving named is undecided: then it has its book reserved.
local function is_undecided(request)
  if decided[requests .. request] or not split(request) then
    return false
  end
  local group = group_of(requests, lending_group)
  return is_undone(requests, lending_group, group and group['last-delivered-id'] or '0-0', request)
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
-- hand-off to shelving. `by` is the request that does so while it waits, or "".
local function put_back(list, by)
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
      set('state', state, book, by == '' and '>' .. id or '>' .. id .. ' ' .. by)
    end
  end
end

local function take_from_storage(list)
  for _, book in ipairs(list) do
    if stored[book] then
      set('stored', stored, book, nil)
      room = room + 1
    end
  end
end

-- Lets go what e has only asked for, and empties the reference application's reservation.
local function let_go(e, asked)
  for _, book in ipairs(asked) do
    set('state', state, book, nil)
  end
  if e.reserved then
    redis.call('DEL', e.temp)
    put_back(e.extra, '')
    e.reserved = nil
  end
end

-- The commit's first write. Returns false if the event is not pending any more.
local function acknowledge(e)
  local stream = stream_of(e)
  if redis.call('XACK', stream, lending_group, e.id) == 0 then
    return false
  end
  decided[stream .. e.id] = true
  table.insert(decided_of[stream], e.id)
  return true
end

-- What waited for e waits for the next in front, if e was refused without any effect; otherwise
-- it has to try again.
local function pass_ties_on(e, effect)
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

-- Writes the outcome and returns the event's reply. `lists` are pairs of a field and books.
local function conclude(e, outcome, cause, lists, effect)
  local reply = {'DONE', 'outcome', outcome}
  if cause then
    reply[4], reply[5] = 'cause', cause
  end
  for n = 1, #lists, 2 do
    if #lists[n + 1] > 0 then
      reply[#reply + 1] = lists[n]
      reply[#reply + 1] = table.concat(lists[n + 1], ',')
    end
  end
  reply[#reply + 1] = 'in_hand'
  reply[#reply + 1] = string.format('%d', in_hand[e.count])
  redis.call('XADD', outcomes, '*', 'event_id', e.id, 'action', e.action, 'user_id', e.user,
    unpack(reply, 2))
  if e.answer then
    local text = {'event_id', e.id, 'action', e.action, 'user_id', e.user,
      table.concat(reply, '\n', 2)}
    redis.call('DEL', e.answer)
    redis.call('RPUSH', e.answer, table.concat(text, '\n'))
    redis.call('PEXPIRE', e.answer, e.answer_ms)
  end
  if e.tied then
    pass_ties_on(e, effect)
  end
  return reply
end

---- Acts: what a look at an event leads to. They are called after it and cannot fail.

-- Every book of a request is there, and its user may have them all.
local function grant_all(e)
  if not acknowledge(e) then
    return {'STALE'}
  end
  for _, book in ipairs(e.books) do
    if stored[book] then
      set('stored', stored, book, nil)
      room = room + 1
    end
    set('loan', loan, book, e.user)
    set('state', state, book, '=' .. e.id)
  end
  set('in_hand', in_hand, e.count, in_hand[e.count] + #e.books)
  return conclude(e, 'accepted', nil, {'book_ids', e.books}, true)
end

local function wait(e, sorted)
  let_go(e, sorted.asked)
  put_back(sorted.have, e.id)
  return {'WAIT', sorted.in_doubt and 'doubt' or sorted.blocked and 'book' or 'older'}
end

-- Asks shelving for books, after reserving those that are not yet reserved for e.
local function fetch(e, sorted)
  local reply = {'FETCH', sorted.certain and '' or doubt()}
  for _, book in ipairs(#sorted.unknown > 0 and sorted.unknown or sorted.free) do
    set('state', state, book, '?' .. e.id)
    reply[#reply + 1] = book
  end
  return reply
end

local function decide(e, sorted)
  local available = sorted.available
  if not acknowledge(e) then
    return {'STALE'}
  end
  let_go(e, sorted.asked)
  local lists = {'already_yours', sorted.mine, 'lent_to_another', sorted.others,
    'unavailable', sorted.nowhere}
  if #available == 0 then
    return conclude(e, 'denied', 'none_available', lists, false)
  end
  take_from_storage(sorted.instant)
  if sorted.too_many then
    put_back(available, '')
    lists[7], lists[8] = 'put_back', available
    return conclude(e, 'denied', 'too_many_books', lists, true)
  end
  for _, book in ipairs(available) do
    set('loan', loan, book, e.user)
    set('state', state, book, '=' .. e.id)
  end
  set('in_hand', in_hand, e.count, in_hand[e.count] + #available)
  return conclude(e, 'accepted', nil, {'book_ids', available, unpack(lists)}, true)
end

local function take_back(e, sorted)
  if not acknowledge(e) then
    return {'STALE'}
  end
  local mine = sorted.mine
  for _, book in ipairs(mine) do
    set('loan', loan, book, nil)
    set('state', state, book, nil)
  end
  if #mine > 0 then
    set('in_hand', in_hand, e.count, math.max(0, in_hand[e.count] - #mine))
    put_back(mine, '')
  end
  local lists = {'book_ids', mine, 'lent_to_another', sorted.others, 'not_lent', sorted.not_lent}
  return conclude(e, #mine > 0 and 'returned' or 'unchanged', nil, lists, #mine > 0)
end

---- Looks: read only, except for a note that an event waits. Each returns an act.

-- Whether every book is there without any question: in storage, or handed out by shelving.
local function all_there(e)
  if e.reserved or in_hand[e.count] + #e.books > limit then
    return false
  end
  for _, book in ipairs(e.books) do
    if loan[book] or (not stored[book] and (e.said ~= 'yes' or state[book])) then
      return false
    end
  end
  return true
end

local function look_at_request(e)
  if all_there(e) then
    return grant_all
  end
  local have, instant, free = {}, {}, {}           -- available, for certain or perhaps
  local asked, unknown = {}, {}                    -- reserved for e without having the book
  local mine, others, nowhere = {}, {}, {}         -- refused
  local available, blocked, in_doubt = {}, false, false
  for n, book in ipairs(e.books) do
    local is = state[book]
    local kind = is and string.sub(is, 1, 1)
    local own = kind == '?' and string.sub(is, 2) == e.id
    local answer = e.said == 'yes' and 'yes' or e.answers and e.answers[n] or ''
    local put_back_by_e = kind == '>' and string.match(is, ' (%S+)$') == e.id
    if own and (loan[book] or stored[book]) then
      asked[#asked + 1] = book
    end
    if loan[book] then
      local list = loan[book] == e.user and mine or others
      list[#list + 1] = book
    elseif e.reserved and e.reserved[book] then
      have[#have + 1] = book
      available[#available + 1] = book
    elseif stored[book] then
      instant[#instant + 1] = book
      available[#available + 1] = book
    elseif answer == 'yes' and not put_back_by_e then
      have[#have + 1] = book
      available[#available + 1] = book
    elseif put_back_by_e and answer == 'yes' and not in_transit(is) then
      -- Said before the book arrived, or after? Before anything else it is asked for again.
      unknown[#unknown + 1] = book
    elseif (own and answer == '') or (answer == 'again' and (own or kind ~= '?')
      and not (kind == '>' and in_transit(is))) then
      unknown[#unknown + 1] = book
    elseif own then
      asked[#asked + 1] = book
      if is_undecided(answer) then
        blocked = true
      elseif e.said == 'certain' then
        nowhere[#nowhere + 1] = book
      else
        in_doubt = true
      end
    elseif kind == '?' or (kind == '>' and in_transit(is))
      or (answer ~= '' and answer ~= 'yes' and answer ~= e.id and is_undecided(answer)) then
      blocked = true
    else
      free[#free + 1] = book
      available[#available + 1] = book
    end
  end
  local sorted = {
    have = have, instant = instant, free = free, asked = asked, unknown = unknown, mine = mine,
    others = others, nowhere = nowhere, available = available, blocked = blocked,
    in_doubt = in_doubt, too_many = in_hand[e.count] + #available > limit,
  }
  if #unknown > 0 then
    return fetch, sorted
  end
  local refusal = blocked or in_doubt or sorted.too_many or #available < #e.books
  if refusal and (blocked or in_doubt or not nothing_older(e)) then
    return wait, sorted
  end
  if #free > 0 then
    if e.doubt then
      sorted.certain = settled(e.doubt)
      sorted.in_doubt = not sorted.certain
    end
    return sorted.in_doubt and wait or fetch, sorted
  end
  return decide, sorted
end

local function look_at_return(e)
  local mine, others, not_lent = {}, {}, {}
  local ms = split(e.id)
  for _, book in ipairs(e.books) do
    local list = not_lent
    if loan[book] == e.user then
      -- Only loans of older requests are meant. A loan without an entry is old.
      local request = string.match(state[book] or '', '^=(.*)$')
      if not request or not smaller(ms, split(request) or ms) then
        list = mine
      end
    elseif loan[book] then
      list = others
    end
    list[#list + 1] = book
  end
  local sorted = {mine = mine, others = others, not_lent = not_lent, asked = {}, have = {}}
  if #mine < #e.books and not nothing_older(e) then
    return wait, sorted
  end
  return take_back, sorted
end

---- All events, then what they changed.

local replies = {}
for n, e in ipairs(events) do
  local cause = broken[e.count] or broken[e.temp or '']
  if cause then
    replies[n] = {'FAILED', cause}
  else
    local look = e.action == 'request' and look_at_request or look_at_return
    local ok, act, sorted = pcall(look, e)
    if ok then
      replies[n] = act(e, sorted)
    else
      replies[n] = {'FAILED', 'script_error: ' .. tostring(type(act) == 'table' and act.err or act)}
    end
  end
end

local function write_hash(key, what, values)
  local fields, gone = {}, {}
  for _, field in ipairs(changed[what]) do
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
for _, book in ipairs(changed.stored) do
  local list = stored[book] and arrived or left
  list[#list + 1] = book
end
in_slices(left, function(first, last)
  redis.call('SREM', storage_key, unpack(left, first, last))
end)
in_slices(arrived, function(first, last)
  redis.call('SADD', storage_key, unpack(arrived, first, last))
end)

local numbers = {}
for _, key in ipairs(changed.in_hand) do
  numbers[#numbers + 1] = key
  numbers[#numbers + 1] = string.format('%d', in_hand[key])
end
in_slices(numbers, function(first, last)
  redis.call('MSET', unpack(numbers, first, last))
end)

for stream, ids in pairs(decided_of) do
  if #ids > 0 then
    redis.call('XTRIM', outcomes, 'MAXLEN', '~', outcomes_kept)
  end
  if not keep_events then
    in_slices(ids, function(first, last)
      redis.call('XDEL', stream, unpack(ids, first, last))
    end)
  end
end
return replies
