-- decide.lua: work on requests and returns, in the order given, as far as each can go now.
--
-- After order.lua and refusals.lua. LendingService's one script. For each event it either
--   commits: effect, outcome, hand-off to shelving, answer, XACK and XDEL together,
--   puts back what the event has reserved, because a refusal would be too early (WAIT), or
--   reserves books that only ShelvingService can know about, and asks for them (FETCH).
-- On its first try by an instance a request comes with ShelvingService's answers already. A "yes"
-- is true: the book was on its shelf and is out for this request now. "Again" says that it was
-- handed out to this request before, which may have put it back since: it counts only under a
-- reservation made here. A "no" names the request that has the book. It is not final, since the
-- book may have come back in the meantime: a book that is nowhere else is reserved here, asked for
-- again, and only the second "no" counts. What waits has nothing and is tried without asking first.
--
-- KEYS  1 the instance's lock       2 requests (stream)      3 returns (stream)
--       4 hand-offs (stream)        5 loans (hash)           6 book states (hash)
--       7 automated storage (set)   8 outcomes (stream)      9 ties (hash)
--       10 the books of each user (hash)    11 answers of ShelvingService (hash)
--       then for each event: the user's count (string), the reservation that the reference
--       application may have left (set), and, if an answer is wished, the answer (list)
-- ARGV  1 token of the lease        2 storage capacity       3 most books a user may have
--       4 outcomes to keep          5 group of lending       6 group of shelving
--       7 "keep" or "delete" decided events                8 consumer of this instance
--       9 channel of the bell
--       10 number of the fetch that this call was sent behind, or ""
--       11 n, then n consumers that hold up no refusal (silent instances without a lease)
--       . m, then m consumers that run the reference application
--       then for each event:
--         its form, five words in one argument since few events differ in it: "request" or "return";
--           the number of books; what ShelvingService has said of them: "nothing", "yes" to all,
--           "fetched" (all is in its answer to that fetch), or how final a "no" is: "first" (not at
--           all), "in_doubt", "certain"; milliseconds to keep the answer, 0 if none is wished;
--           "sure", or "doubt" if there is one
--         event id, user id
--         with "doubt": the doubt that an earlier FETCH gave, or "no" after WAIT "no"
--         the books, and, with "first", "in_doubt" and "certain", for each of them "yes", "again",
--         the id of the request that has it, "" (not asked), or "fetched"
-- Returns {"FENCED"} | {"UNASKED"} (there is no answer to that fetch; nothing was done),
--       or for each event one of
--       a number                          accepted or returned, with all its books: so many does
--                                         the user have now
--       text                              any other outcome: its fields from "outcome" on, names and
--                                         values in turn, a line each
--       {"WAIT", "older" | "book" | "doubt" | "no"}   "no": shelving has said a final "no"
--       {"FETCH", doubt, book, ...}       doubt is "" or goes into the next try, see above
--       {"STALE"}                         not pending any more: somebody else decides it; nothing
--                                         was changed, since what it had is theirs now
--       {"FAILED", cause}                 cannot be worked on: to be dead-lettered
--
-- Lua has no rollback: everything is read and every type is checked before the first write, and
-- what is changed is changed in memory first and written at the end (I1, I2, I3, I4). Within one
-- script, reads after an event's commit go by the memory. A refusal waits for what is older (I8): all
-- about that is in refusals.lua, which most calls do not need.
--
-- The state of a book: "?17-0" reserved by request 17-0; "=17-0" lent to request 17-0; ">17-0" on
-- its way to its shelf in hand-off 17-0.

local lock, requests, returns, handoffs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local loans_key, states_key, storage_key = KEYS[5], KEYS[6], KEYS[7]
local outcomes, ties, books_of_key = KEYS[8], KEYS[9], KEYS[10]
local capacity, limit, outcomes_kept = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local lending_group, shelving_group, keep_events = ARGV[5], ARGV[6], ARGV[7] == 'keep'
local me = ARGV[8]

if redis.call('GET', lock) ~= ARGV[1] then
  return {'FENCED'}
end

-- What fetch.lua replied, word and answers, and how much of that was taken.
local fetched, taken = {}, 1
if ARGV[10] ~= '' then
  -- It may have been left to a later fetch, if this call had to be sent twice.
  local head, answer = ARGV[1] .. ' ' .. ARGV[10] .. ' ', redis.call('HGET', KEYS[11], me)
  if not answer or string.sub(answer, 1, #head) ~= head then
    return {'UNASKED'}
  end
  fetched = #answer > #head and cmsgpack.unpack(string.sub(answer, #head + 1)) or 'all'
end
local function next_fetched()
  taken = taken + 1
  return fetched == 'all' and 'yes' or fetched[taken]
end

---- Arguments to tables.

local at, next_key = 11, 12
local silent, reference = {}, {}
for n = 1, tonumber(ARGV[at]) do
  silent[ARGV[at + n]] = true
end
at = at + 1 + tonumber(ARGV[at])
for n = 1, tonumber(ARGV[at]) do
  reference[n] = ARGV[at + n]
end
at = at + 1 + #reference

local forms = {}
local function form_of(text)
  local form = forms[text]
  if not form then
    local action, n, said, answer_ms, doubt =
      string.match(text, '^(%a+) (%d+) ([%a_]+) (%d+) (%a+)$')
    form = {
      action = action, n = tonumber(n), said = said ~= 'nothing' and said or '',
      answer_ms = answer_ms ~= '0' and answer_ms, doubt = doubt == 'doubt',
    }
    forms[text] = form
  end
  return form
end

local events = {}
local books, is_book = {}, {}                      -- of all events, each once
-- Of a book that is lent, the state tells a return whose loan it is, and a request that may have
-- something reserved what that is. To all others it does not matter, and is not read: a reservation
-- by a request that is delivered anew after its group was lost, of a book that was lent meanwhile, is
-- left to the keeper's sweep.
local state_matters = {}
local counts, is_count = {}, {}
-- Keys that are nearly never there: notes of ties, reservations of the reference application, and
-- counts of a wrong type, which MGET takes for absent ones. All are looked for in one go.
local unlikely = {ties}
local requests_here = 0
while at <= #ARGV do
  local form = form_of(ARGV[at])
  local n, first = form.n, at + (form.doubt and 4 or 3)
  local e = {
    action = form.action, id = ARGV[at + 1], user = ARGV[at + 2], said = form.said,
    books = {unpack(ARGV, first, first + n - 1)}, count = KEYS[next_key],
    stream = form.action == 'request' and requests or returns,
  }
  if form.answer_ms then
    e.answer, e.answer_ms = KEYS[next_key + 2], form.answer_ms
  end
  if form.doubt then
    e.doubt = ARGV[at + 3]
  end
  if e.action == 'request' then
    requests_here = requests_here + 1
    e.temp = KEYS[next_key + 1]
    unlikely[#unlikely + 1] = e.temp
  end
  next_key = next_key + (e.answer and 3 or 2)
  if not is_count[e.count] then
    is_count[e.count] = true
    counts[#counts + 1] = e.count
  end
  at = first + n
  if e.said == 'fetched' and fetched == 'all' then
    e.said = 'yes'
  elseif e.said == 'fetched' then
    e.said, e.answers = 'yes', {}
    for k = 1, n do
      e.answers[k] = next_fetched()
      e.said = e.answers[k] == 'yes' and e.said or 'first'
    end
  elseif e.said ~= '' and e.said ~= 'yes' then
    e.answers = {unpack(ARGV, at, at + n - 1)}
    at = at + n
    for k = 1, n do
      e.answers[k] = e.answers[k] == 'fetched' and next_fetched() or e.answers[k]
    end
  end
  local needs_state = e.action == 'return' or e.said ~= ''
  for k = 1, n do
    local book = e.books[k]
    if not is_book[book] then
      is_book[book] = true
      books[#books + 1] = book
    end
    if needs_state then
      state_matters[book] = true
    end
  end
  events[#events + 1] = e
end

---- Everything that is read before the first write.

-- Lua's stack bounds the arguments of one call: they are passed by so many.
local SLICE = 1000
local function slice(list, first)
  return unpack(list, first, math.min(first + SLICE - 1, #list))
end
local function sliced_call(command, key, list)
  for first = 1, #list, SLICE do
    redis.call(command, key, slice(list, first))
  end
end

local loan, state, stored, in_hand, broken = {}, {}, {}, {}, {}
-- What a hash has of some fields, into a table.
local function read_hash(key, fields, values)
  for first = 1, #fields, SLICE do
    for n, value in ipairs(redis.call('HMGET', key, slice(fields, first))) do
      if value then
        values[fields[first + n - 1]] = value
      end
    end
  end
end

read_hash(loans_key, books, loan)
local with_state = {}
for _, book in ipairs(books) do
  if not loan[book] or state_matters[book] then
    with_state[#with_state + 1] = book
  end
end
read_hash(states_key, with_state, state)

-- A book that is lent as well is counted as lent, wherever else it may be. Looked through whole, the
-- storage is cheaper than so many questions; but somebody may have put anything there.
local number_stored = #books > capacity and redis.call('SCARD', storage_key)
if number_stored and number_stored <= SLICE then
  for _, book in ipairs(redis.call('SMEMBERS', storage_key)) do
    stored[book] = true
  end
else
  for first = 1, #books, SLICE do
    for n, is in ipairs(redis.call('SMISMEMBER', storage_key, slice(books, first))) do
      if is == 1 then
        stored[books[first + n - 1]] = true
      end
    end
  end
end

local absent = {}
for first = 1, #counts, SLICE do
  for n, value in ipairs(redis.call('MGET', slice(counts, first))) do
    local key = counts[first + n - 1]
    if not value then
      absent[#absent + 1] = key
      unlikely[#unlikely + 1] = key
      in_hand[key] = 0
    elseif #value < 10 and string.match(value, '^%-?%d+$') then
      -- Of "-0" this makes 0.
      in_hand[key] = tonumber(value) + 0
    else
      broken[key] = 'count_not_a_number'
    end
  end
end

-- For whoever asks what a user has: joined by commas. The reference application knows nothing of it,
-- so it may name books that the user has no more, and miss some. A request whose books are all lent
-- does not need it, unless one of them is returned first: then it is read when it is needed.
local books_of, users, is_user = {}, {}, {}
for _, e in ipairs(events) do
  if not is_user[e.user] then
    local may_change = e.action == 'return'
    for k = 1, #e.books do
      may_change = may_change or not loan[e.books[k]]
    end
    if may_change then
      is_user[e.user] = true
      users[#users + 1] = e.user
    end
  end
end
read_hash(books_of_key, users, books_of)

-- What was found out for refusals, and may change by what is done here: whether anybody is noted to
-- wait for another, which hand-offs are undone, and, once somebody has asked for them, `shelving`
-- (how far its group has come) and the `doubt` of this moment.
local known = {are_ties = false, undone = {}}

local any = 0
for first = 1, #unlikely, SLICE do
  any = any + redis.call('EXISTS', slice(unlikely, first))
end
known.are_ties = any > 0 and redis.call('HLEN', ties) > 0
if any > (known.are_ties and 1 or 0) then
  for _, key in ipairs(absent) do
    if redis.call('EXISTS', key) == 1 then
      broken[key] = 'count_of_wrong_type'
    end
  end
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

-- A wrong type here must show before anything is written, and so must a number of outcomes that Redis
-- does not take.
if requests_here > 0 then
  redis.call('XLEN', requests)
end
if requests_here < #events then
  redis.call('XLEN', returns)
end
redis.call('XLEN', handoffs)
if #with_state == 0 then
  redis.call('HLEN', states_key)
end
if #users == 0 then
  redis.call('HLEN', books_of_key)
end
redis.call('XTRIM', outcomes, 'MAXLEN', '~', outcomes_kept)

---- What is changed in memory, to be written at the end.

-- What was changed of each table, as sets.
local changed = {loan = {}, state = {}, stored = {}, in_hand = {}, books_of = {}}
local function set(what, values, key, value)
  values[key], changed[what][key] = value, true
end

local function write_hash(key, what, values)
  local fields, gone, n = {}, {}, 0
  for field in pairs(changed[what]) do
    local value = values[field]
    if value then
      fields[n + 1], fields[n + 2] = field, value
      n = n + 2
    else
      gone[#gone + 1] = field
    end
  end
  sliced_call('HSET', key, fields)
  sliced_call('HDEL', key, gone)
end

-- Of each stream the decided events, as a set and as a list.
local decided, decided_of = {[requests] = {}, [returns] = {}}, {[requests] = {}, [returns] = {}}

---- Effects. They run between writes and cannot fail.

-- So many books more are stored by what is done here.
local stored_more = 0

-- Puts books back: into automated storage while it has room, in the order given, the rest in one
-- hand-off to shelving.
local function put_back(list)
  local rest = {}
  number_stored = number_stored or redis.call('SCARD', storage_key)
  for _, book in ipairs(list) do
    if stored[book] then
      -- Lent and there as well: somebody else left it so.
      set('state', state, book, nil)
    elseif number_stored + stored_more < capacity then
      stored_more = stored_more + 1
      set('stored', stored, book, true)
      set('state', state, book, nil)
    else
      rest[#rest + 1] = book
    end
  end
  if #rest > 0 then
    local id = redis.call('XADD', handoffs, '*', 'book_ids', table.concat(rest, ','))
    known.undone[id] = true
    known.shelving, known.doubt = nil, nil
    for _, book in ipairs(rest) do
      set('state', state, book, '>' .. id)
    end
  end
end

local function take_from_storage(list)
  for n = 1, #list do
    local book = list[n]
    if stored[book] then
      set('stored', stored, book, nil)
      stored_more = stored_more - 1
    end
  end
end

-- The commit's first write. Returns false if the event is not pending any more.
local function acknowledge(e)
  if redis.call('XACK', e.stream, lending_group, e.id) == 0 then
    return false
  end
  decided[e.stream][e.id] = true
  local ids = decided_of[e.stream]
  ids[#ids + 1] = e.id
  return true
end

-- Whether a book is lent to a user, also if it is no book of this call.
local function has(user, book)
  if is_book[book] then
    return loan[book] == user
  end
  return redis.call('HGET', loans_key, book) == user
end

-- The books that are noted of a user, if any are.
local function noted_books(user)
  if not is_user[user] then
    is_user[user] = true
    books_of[user] = redis.call('HGET', books_of_key, user) or nil
  end
  if not books_of[user] then
    return nil
  end
  local list = {}
  for book in string.gmatch(books_of[user], '[^,]+') do
    list[#list + 1] = book
  end
  return list
end

local function lend(e, available)
  local lent = '=' .. e.id
  for n = 1, #available do
    local book = available[n]
    set('loan', loan, book, e.user)
    set('state', state, book, lent)
  end
  set('in_hand', in_hand, e.count, in_hand[e.count] + #available)
  local list = noted_books(e.user)
  if not list then
    set('books_of', books_of, e.user, table.concat(available, ','))
    return
  end
  -- With more than a user may have, some are not true any more.
  local outdated = #list + #available > limit
  local all, is_new = {}, {}
  for n, book in ipairs(available) do
    all[n], is_new[book] = book, true
  end
  for _, book in ipairs(list) do
    if not is_new[book] and (not outdated or has(e.user, book)) then
      all[#all + 1] = book
    end
  end
  set('books_of', books_of, e.user, table.concat(all, ','))
end

-- The requests of this call that wait for a book, and those of the books that came free since: a
-- newer request does not get them before the others are tried again.
local awaited, came_free = {}, {}
local function would_overtake(e)
  if not next(came_free) then
    return false
  end
  for _, book in ipairs(e.books) do
    for _, id in ipairs(came_free[book] or {}) do
      if not decided[requests][id] and before(id, e.id) then
        return true
      end
    end
  end
  return false
end

-- Takes back books that are lent to the user of e.
local function take_back(e, mine)
  for _, book in ipairs(mine) do
    set('loan', loan, book, nil)
    set('state', state, book, nil)
    came_free[book] = awaited[book]
  end
  if #mine == 0 then
    return
  end
  set('in_hand', in_hand, e.count, math.max(0, in_hand[e.count] - #mine))
  local list, gone = {}, {}
  for _, book in ipairs(mine) do
    gone[book] = true
  end
  for _, book in ipairs(noted_books(e.user) or {}) do
    if not gone[book] then
      list[#list + 1] = book
    end
  end
  set('books_of', books_of, e.user, #list > 0 and table.concat(list, ',') or nil)
  put_back(mine)
end

-- What refusals.lua has to say of this call. Made when first needed: most calls refuse nothing, and
-- it takes Lua longer to make its functions than to decide an event.
local loaded
local tell
local function refusing()
  loaded = loaded or refusals({
    requests = requests, returns = returns, handoffs = handoffs, ties = ties,
    lending_group = lending_group, shelving_group = shelving_group, me = me, silent = silent,
    reference = reference, limit = limit, loan = loan, state = state, stored = stored,
    in_hand = in_hand, decided = decided, known = known, changed = changed,
    awaited = awaited, set = set, write_hash = write_hash, put_back = put_back,
    take_from_storage = take_from_storage, acknowledge = acknowledge, lend = lend,
    take_back = take_back, would_overtake = would_overtake, tell = tell,
  })
  return loaded
end

-- Writes the outcome. After it come its fields, names and values in turn.
function tell(e, effect, outcome, ...)
  redis.call('XADD', outcomes, '*', 'event_id', e.id, 'action', e.action, 'user_id', e.user,
    'outcome', outcome, ...)
  if e.answer then
    local text = {'event_id', e.id, 'action', e.action, 'user_id', e.user, 'outcome', outcome, ...}
    redis.call('DEL', e.answer)
    redis.call('RPUSH', e.answer, table.concat(text, '\n'))
    redis.call('PEXPIRE', e.answer, e.answer_ms)
  end
  if known.are_ties then
    refusing().is_told(e, outcome, effect)
  end
end

-- As `tell`, for an event that had all that it asked for. The caller knows the rest.
local function tell_all(e, outcome)
  local now = in_hand[e.count]
  tell(e, true, outcome, 'book_ids', table.concat(e.books, ','), 'in_hand', now)
  return now
end

---- Acts: what a look at an event leads to. They are called after it and cannot fail.

-- Every book of a request is there, and its user may have them all.
local function grant_all(e)
  if not acknowledge(e) then
    return {'STALE'}
  end
  take_from_storage(e.books)
  lend(e, e.books)
  return tell_all(e, 'accepted')
end

-- Every book of a return is lent to its user.
local function take_all_back(e)
  if not acknowledge(e) then
    return {'STALE'}
  end
  take_back(e, e.books)
  return tell_all(e, 'returned')
end

---- Looks: read only, except for a note that an event waits. Each returns an act and what it needs.

-- Whether every book is there without any question: in storage, or handed out by shelving.
local function all_there(e)
  if e.reserved or in_hand[e.count] + #e.books > limit then
    return false
  end
  local is_handed_out = e.said == 'yes'
  for n = 1, #e.books do
    local book = e.books[n]
    if loan[book] or (not stored[book] and (not is_handed_out or state[book])) then
      return false
    end
  end
  return true
end

local function look_at_request(e)
  if all_there(e) and not would_overtake(e) then
    return grant_all
  end
  return refusing().look_at_request(e)
end

-- Whether a request is younger than a return. In a tie that is not known, and it is not.
local function is_younger(request, e)
  local request_ms, ms = split(request), split(e.id)
  if request_ms ~= ms then
    return smaller(ms, request_ms)
  end
  return not is_tie(request, e.id) and before(e.id, request)
end

local function look_at_return(e)
  local mine, others, not_lent = {}, {}, {}
  local known_state, is_old                        -- of the last book: nearly always the next one's
  for _, book in ipairs(e.books) do
    local list = not_lent
    if loan[book] == e.user then
      -- Only loans of older requests are meant. A loan without an entry is old.
      local is = state[book] or ''
      if is ~= known_state then
        local request = string.match(is, '^=(.*)$')
        known_state = is
        is_old = not request or not split(request) or not is_younger(request, e)
      end
      if is_old then
        list = mine
      end
    elseif loan[book] then
      list = others
    end
    list[#list + 1] = book
  end
  if #mine == #e.books then
    return take_all_back
  end
  return refusing().look_at_return(e, {mine = mine, others = others, not_lent = not_lent})
end

---- All events, then what they changed.

local replies = {}
local function try(n, e)
  local cause = broken[e.count] or broken[e.temp or '']
  if cause then
    replies[n] = {'FAILED', cause}
    return
  end
  local look = e.action == 'request' and look_at_request or look_at_return
  local ok, act, sorted = pcall(look, e)
  if ok then
    replies[n] = act(e, sorted)
  else
    replies[n] = {'FAILED', 'script_error: ' .. tostring(type(act) == 'table' and act.err or act)}
  end
end

local were_ties = known.are_ties
for n, e in ipairs(events) do
  if were_ties and refusing().still_waits(e) then
    replies[n] = {'WAIT', 'older'}
  else
    try(n, e)
  end
end
if known.are_ties then
  refusing().break_ties(events, replies, try)
end

write_hash(loans_key, 'loan', loan)
write_hash(states_key, 'state', state)
write_hash(books_of_key, 'books_of', books_of)
if known.are_ties then
  refusing().write_ties()
end

local arrived, left = {}, {}
for book in pairs(changed.stored) do
  local list = stored[book] and arrived or left
  list[#list + 1] = book
end
sliced_call('SREM', storage_key, left)
sliced_call('SADD', storage_key, arrived)

local numbers = {}
for key in pairs(changed.in_hand) do
  numbers[#numbers + 1] = key
  numbers[#numbers + 1] = in_hand[key]
end
for first = 1, #numbers, SLICE do
  redis.call('MSET', slice(numbers, first))
end

-- Whether ids are in their order. Those of one length and with the hyphen in one place are
-- compared as text.
local function are_sorted(ids)
  for n = 2, #ids do
    local a, b = ids[n - 1], ids[n]
    local as_text = #a == #b and string.find(a, '-', 1, true) == string.find(b, '-', 1, true)
    if not (as_text and a < b) and not before(a, b) then
      return false
    end
  end
  return true
end

-- So many are worth a look at whether they can be deleted in one go.
local MANY = 16
-- XDEL searches a block of the stream for each id. Where everything up to the last of them is
-- decided, whoever decided it, and nobody else reads the stream, trimming it is much cheaper.
local function can_be_trimmed(stream, ids)
  if #ids < MANY or not are_sorted(ids) then
    return false
  end
  local group, groups = group_of(stream, lending_group)
  local last = ids[#ids]
  local pending = redis.pcall('XPENDING', stream, lending_group, '-', last, 1)
  return groups == 1 and not pending.err and #pending == 0
    and not before(group['last-delivered-id'], last)
end

for stream, ids in pairs(decided_of) do
  if keep_events then
    -- They stay.
  elseif can_be_trimmed(stream, ids) then
    redis.call('XTRIM', stream, 'MINID', ids[#ids])
    redis.call('XDEL', stream, ids[#ids])
  else
    sliced_call('XDEL', stream, ids)
  end
end

-- Other instances may wait for what was decided here. Who is not permitted to ring works on: the
-- others then find out by themselves.
if #decided_of[requests] + #decided_of[returns] > 0 then
  redis.pcall('PUBLISH', ARGV[9], me)
end
return replies
