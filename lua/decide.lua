-- decide.lua: work on requests and returns, in the order given, as far as each can go now.
--
-- After order.lua. LendingService's one script. For each event it either
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
--       10 the books of each user (hash)
--       then for each event: the user's count (string), the reservation that the reference
--       application may have left (set), and, if an answer is wished, the answer (list)
-- ARGV  1 token of the lease        2 storage capacity       3 most books a user may have
--       4 outcomes to keep          5 group of lending       6 group of shelving
--       7 "keep" or "delete" decided events                8 consumer of this instance
--       9 channel of the bell
--       10 n, then n consumers that hold up no refusal (silent instances without a lease)
--       . m, then m consumers that run the reference application
--       then for each event:
--         its form, five words in one argument since few events differ in it: "request" or "return";
--           the number of books; what ShelvingService has said of them: "nothing", "yes" to all, or
--           how final a "no" is: "first" (not at all), "in_doubt", "certain"; milliseconds to keep
--           the answer, 0 if none is wished; "sure", or "doubt" if there is one
--         event id, user id
--         with "doubt": the doubt that an earlier FETCH gave, or "no" after WAIT "no"
--         the books, and, but for "nothing" and "yes", for each of them "yes", "again", the id of
--         the request that has it, or "" (not asked)
-- Returns {"FENCED"}, or for each event one of
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
-- script, reads after an event's commit go by the memory. A refusal waits for what is older (I8).
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

---- Arguments to tables.

local at, next_key = 10, 11
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
local counts, is_count, temps = {}, {}, {}
while at <= #ARGV do
  local form = form_of(ARGV[at])
  local n, first = form.n, at + (form.doubt and 4 or 3)
  local e = {
    action = form.action, id = ARGV[at + 1], user = ARGV[at + 2], said = form.said,
    books = {unpack(ARGV, first, first + n - 1)}, count = KEYS[next_key],
  }
  if form.answer_ms then
    e.answer, e.answer_ms = KEYS[next_key + 2], form.answer_ms
  end
  if form.doubt then
    e.doubt = ARGV[at + 3]
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
  at = first + n
  local needs_state = e.action == 'return' or e.said ~= ''
  for _, book in ipairs(e.books) do
    if not is_book[book] then
      is_book[book] = true
      books[#books + 1] = book
    end
    if needs_state then
      state_matters[book] = true
    end
  end
  if e.said ~= '' and e.said ~= 'yes' then
    e.answers = {unpack(ARGV, at, at + n - 1)}
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
-- What a hash has of some fields, into a table.
local function read_hash(key, fields, values)
  in_slices(fields, function(first, last)
    for n, value in ipairs(redis.call('HMGET', key, unpack(fields, first, last))) do
      if value then
        values[fields[first + n - 1]] = value
      end
    end
  end)
end

read_hash(loans_key, books, loan)
local with_state = {}
for _, book in ipairs(books) do
  if not loan[book] or state_matters[book] then
    with_state[#with_state + 1] = book
  end
end
read_hash(states_key, with_state, state)

-- A book that is lent as well is counted as lent, wherever else it may be.
local number_stored = redis.call('SCARD', storage_key)
if number_stored == 0 then
  -- Nothing to look for.
elseif #books > number_stored and number_stored <= SLICE then
  for _, book in ipairs(redis.call('SMEMBERS', storage_key)) do
    stored[book] = true
  end
else
  in_slices(books, function(first, last)
    for n, is in ipairs(redis.call('SMISMEMBER', storage_key, unpack(books, first, last))) do
      if is == 1 then
        stored[books[first + n - 1]] = true
      end
    end
  end)
end

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

-- For whoever asks what a user has: joined by commas. The reference application knows nothing of it,
-- so it may name books that the user has no more, and miss some. A request whose books are all lent
-- does not need it, unless one of them is returned first: then it is read when it is needed.
local books_of, users, is_user = {}, {}, {}
for _, e in ipairs(events) do
  if not is_user[e.user] then
    local may_change = e.action == 'return'
    for _, book in ipairs(e.books) do
      may_change = may_change or not loan[book]
    end
    if may_change then
      is_user[e.user] = true
      users[#users + 1] = e.user
    end
  end
end
read_hash(books_of_key, users, books_of)

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

local room = capacity - number_stored
-- A wrong type here must show before anything is written.
for _, stream in ipairs({requests, returns, handoffs, outcomes}) do
  redis.call('XLEN', stream)
end
redis.call('HLEN', books_of_key)
local ties_noted = redis.call('HLEN', ties) > 0

---- What is changed in memory, to be written at the end.

-- Lists of what was changed, each entry once.
local changed = {loan = {}, state = {}, stored = {}, in_hand = {}, books_of = {}}
local is_changed = {loan = {}, state = {}, stored = {}, in_hand = {}, books_of = {}}
local function set(what, values, key, value)
  values[key] = value
  local is = is_changed[what]
  if not is[key] then
    is[key] = true
    local list = changed[what]
    list[#list + 1] = key
  end
end

local decided, decided_of = {[requests] = {}, [returns] = {}}, {[requests] = {}, [returns] = {}}

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

-- The first entry from one id to another that is pending for a group, those of silent instances
-- passed over; "" if there is none, nil if that could not be found out.
local function first_pending(stream, group, from, to)
  local count = next(silent) and 100 or 1
  repeat
    local page = redis.pcall('XPENDING', stream, group, from, to, count)
    if page.err then
      return nil
    end
    for _, entry in ipairs(page) do
      if not silent[entry[2]] then
        return entry[1]
      end
    end
    from = #page > 0 and '(' .. page[#page][1]
  until #page < count
  return ''
end

-- Of each stream the undecided events from the oldest on, as far as known, and where the next is.
local undecided_of = {}
-- Pending entries are looked up in growing pages: often the first settles it, and where a whole
-- chunk is refused, each event asks for the next.
local LONGEST_PAGE = 100
-- The oldest undecided event of a stream: pending, or not delivered yet; "" if there is none, nil
-- if that could not be found out.
local function oldest(stream)
  local known = undecided_of[stream]
  if not known then
    known = {at = 1, from = '-', page = next(silent) and LONGEST_PAGE or 1}
    undecided_of[stream] = known
  end
  while true do
    while known[known.at] do
      local id = known[known.at]
      if not decided[stream][id] then
        return id
      end
      known.at = known.at + 1
    end
    if known.from then
      local page = redis.pcall('XPENDING', stream, lending_group, known.from, '+', known.page)
      if page.err then
        return nil
      end
      for _, entry in ipairs(page) do
        if not silent[entry[2]] then
          known[#known + 1] = entry[1]
        end
      end
      known.from = #page == known.page and '(' .. page[#page][1]
      known.page = math.min(4 * known.page, LONGEST_PAGE)
    elseif known.at_end then
      return ''
    else
      local group = group_of(stream, lending_group)
      if not group then
        return nil
      end
      local entries =
        redis.pcall('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
      if entries.err then
        return nil
      end
      known[#known + 1] = entries[1] and entries[1][1]
      known.at_end = true
    end
  end
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

-- Whether an id was given by submit.lua: then its sequence number is a multiple of a million, and
-- it can be compared with those of the other stream.
local function is_ordered(id)
  return string.find(id, '%-%d+000000$') ~= nil
end

-- Whether of two events of one millisecond and different streams it is not known which is older.
local function is_tie(a_id, b_id)
  return not (is_ordered(a_id) and is_ordered(b_id))
end

-- What is noted of ties: of each event that waits for the one in front, what could end its wait:
-- its user and its books, one a line. Read when first needed, changed in memory like all else.
local tied, front_noted, front_stored, ties_changed, ties_cleared
local tied_by_name                 -- action, user or book -> events noted with it, made when needed
local untied = {}                  -- events whose note is gone: they have to try again

local function load_ties()
  if tied then
    return
  end
  tied, ties_changed = {}, {}
  local noted = ties_noted and redis.call('HGETALL', ties) or {}
  for n = 1, #noted, 2 do
    local action = string.match(noted[n], '^(%a+):')
    -- What somebody else has put there is of no event.
    if action == 'request' or action == 'return' then
      tied[noted[n]] = noted[n + 1]
    elseif noted[n] == '#front' then
      front_noted = noted[n + 1]
    end
  end
  front_stored = front_noted
end

local function name_of(e)
  return e.action .. ':' .. e.id
end

local function note_by_name(event)
  local by_name = tied_by_name[string.match(event, '^%a+')]
  for name in string.gmatch(tied[event], '[^\n]+') do
    by_name[name] = by_name[name] or {}
    table.insert(by_name[name], event)
  end
end

-- Of a stream and a millisecond, see `tying`; `at` is the first that is not known to be noted.
local events_at = {[requests] = {}, [returns] = {}}

local function look_at_all_again()
  for _, lists in pairs(events_at) do
    for _, list in pairs(lists) do
      list.at = 1
    end
  end
end

local function clear_ties(front)
  tied, tied_by_name, front_noted = {}, nil, front
  ties_changed, ties_cleared, front_stored = {}, true, nil
  look_at_all_again()
end

-- Notes that e waits for the one in front.
local function tie(e, front)
  load_ties()
  if front_noted ~= front then
    clear_ties(front)
  end
  local event = name_of(e)
  if not tied[event] then
    tied[event] = e.user .. '\n' .. table.concat(e.books, '\n')
    ties_changed[event] = true
    ties_noted = true
    if tied_by_name then
      note_by_name(event)
    end
  end
end

-- The undecided events of a stream in a millisecond, as far as they tie with those of the other
-- stream: all of them, or those that are not of submit.lua's. nil if that could not be found out.
local function tying(stream, ms, only_plain)
  local key = only_plain and ms .. ' plain' or ms
  local list = events_at[stream][key]
  if list then
    return list
  end
  local action = stream == requests and 'request' or 'return'
  local first, last = ms .. '-0', ms .. '-18446744073709551615'
  local pending = redis.pcall('XPENDING', stream, lending_group, first, last, MOST_TIES)
  local group = group_of(stream, lending_group)
  if pending.err or not group then
    return nil
  end
  list = {at = 1}
  if #pending < MOST_TIES then
    for _, entry in ipairs(pending) do
      if not silent[entry[2]] and not (only_plain and is_ordered(entry[1])) then
        list[#list + 1] = action .. ':' .. entry[1]
      end
    end
    local delivered = group['last-delivered-id']
    if before(delivered, last) then
      local from = before(delivered, first) and first or '(' .. delivered
      for _, entry in ipairs(redis.call('XRANGE', stream, from, last, 'COUNT', MOST_TIES)) do
        list.undelivered = list.undelivered or not (only_plain and is_ordered(entry[1]))
      end
    end
  end
  events_at[stream][key] = list
  return list
end

-- Whether all undecided events that tie with e, which comes first, are known to wait for it.
local function all_wait_for(e, ms)
  local stream = other_stream(e)
  local others = tying(stream, ms, is_ordered(e.id))
  if not others or others.undelivered then
    return false
  end
  while others[others.at] do
    local event = others[others.at]
    if not decided[stream][string.match(event, ':(.*)')] then
      load_ties()
      if front_noted ~= name_of(e) or not tied[event] then
        return false
      end
    end
    others.at = others.at + 1
  end
  return true
end

-- Whether nothing older than e is undecided. Events of the two streams in one millisecond cannot
-- be told apart: e waits for those as well, unless they wait only for e and e comes first.
-- Else notes that e waits, for the event in front to see.
local function nothing_older(e)
  local own = oldest(stream_of(e))
  local stream, action = other_stream(e)
  local other = oldest(stream)
  if not own or not other then
    return false
  end
  local own_first = own == '' or own == e.id or precedes(e.id, e.action, own, e.action)
  if other == '' then
    return own_first
  end
  local ms = split(e.id)
  local other_ms = split(other)
  if other_ms ~= ms then
    return own_first and smaller(ms, other_ms)
  end
  -- A tie: the front is the smallest undecided event of both streams.
  if own_first and precedes(e.id, e.action, other, action) then
    return all_wait_for(e, ms)
  end
  if own ~= '' and not own_first and precedes(own, e.action, other, action) then
    -- The front is of e's own stream: those of e's millisecond wait for it in turn.
    other, action = own, e.action
    if split(own) ~= ms then
      return false
    end
  end
  if is_tie(e.id, other) then
    tie(e, action .. ':' .. other)
  end
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
local function is_undone_now(stream, group, delivered, id)
  if before(delivered, id) then
    local entry = redis.pcall('XRANGE', stream, id, id)
    return entry.err ~= nil or #entry > 0
  end
  -- It could not be found out if the group is gone: what is in the stream will be delivered again.
  return first_pending(stream, group, id, id) ~= ''
end

local undone_known = {}
-- Whether the hand-off that a book's state names is still to be done.
local function in_transit(is)
  local id = string.sub(is, 2)
  if undone_known[id] == nil then
    -- What is no id names no hand-off.
    undone_known[id] = is_id(id) and is_undone_now(handoffs, shelving_group, shelving().delivered, id)
  end
  return undone_known[id]
end

local handed_off, too_many_handed_off
-- Whether a book is in a hand-off that is still to be done, whoever made it: those of the reference
-- application leave no mark. Looked up only where a book would else be given up or believed to be
-- handed out to a request that may have put it back. Where there are too many to look through, what
-- depends on it waits until they are fewer.
local function is_handed_off(book)
  if not handed_off then
    local first = first_pending(handoffs, shelving_group, '-', '+')
    local delivered = shelving().delivered
    local from = first and first ~= '' and before(first, delivered) and first or delivered
    local entries = redis.pcall('XRANGE', handoffs, from, '+', 'COUNT', MOST_HANDOFFS)
    too_many_handed_off = not first or entries.err ~= nil or #entries == MOST_HANDOFFS
    handed_off = handoffs_by_book(too_many_handed_off and {} or entries)
  end
  for _, id in ipairs(handed_off[book] or {}) do
    if in_transit('>' .. id) then
      return true
    end
  end
  return too_many_handed_off
end

-- Whether a request that shelving named is undecided: then it has its book reserved.
local function is_undecided(request)
  if decided[requests][request] or not is_id(request) then
    return false
  end
  local group = group_of(requests, lending_group)
  return is_undone_now(requests, lending_group, group and group['last-delivered-id'] or '0-0', request)
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
    if first_pending(handoffs, shelving_group, '-', handoff) ~= '' then
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
    if stored[book] then
      -- Lent and there as well: somebody else left it so.
      set('state', state, book, nil)
    elseif room > 0 then
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
    put_back(e.extra)
    e.reserved = nil
  end
end

-- The commit's first write. Returns false if the event is not pending any more.
local function acknowledge(e)
  local stream = stream_of(e)
  if redis.call('XACK', stream, lending_group, e.id) == 0 then
    return false
  end
  decided[stream][e.id] = true
  local ids = decided_of[stream]
  ids[#ids + 1] = e.id
  return true
end

-- A decision had an effect: what it may let go on has to try again before it counts as waiting.
-- Loans concern returns of that user; books that come free, and a user who has fewer, requests.
local function untie(e, accepted)
  load_ties()
  if not tied_by_name then
    tied_by_name = {request = {}, ['return'] = {}}
    for event in pairs(tied) do
      note_by_name(event)
    end
  end
  local by_name = tied_by_name[accepted and 'return' or 'request']
  for _, name in ipairs({e.user, unpack(accepted and {} or e.books)}) do
    for _, event in ipairs(by_name[name] or {}) do
      if tied[event] then
        tied[event], ties_changed[event], untied[event] = nil, true, true
      end
    end
    by_name[name] = nil
  end
  look_at_all_again()
end

-- The oldest undecided event of both streams; nil if that could not be found out.
local function in_front()
  local request, give_back = oldest(requests), oldest(returns)
  if not request or not give_back then
    return nil
  elseif request ~= '' and (give_back == '' or precedes(request, 'request', give_back, 'return')) then
    return 'request:' .. request, request
  end
  return 'return:' .. give_back, give_back
end

-- e is decided. What waited for it waits for the next in front.
local function pass_ties_on(e)
  load_ties()
  local event = name_of(e)
  if tied[event] then
    tied[event], ties_changed[event] = nil, true
  end
  if front_noted == event then
    local front, id = in_front()
    if front and split(id) == split(e.id) then
      front_noted = front
    else
      clear_ties(nil)
    end
  end
end

-- Whether e is still this instance's to work on: if its group was lost and made anew, it may have
-- been delivered to another, and what it has is theirs.
local function is_mine(e)
  local pending = redis.pcall('XPENDING', stream_of(e), lending_group, e.id, e.id, 1, me)
  return not pending.err and #pending == 1
end

-- Writes the outcome: `fields` are its names and values from "outcome" on.
local function tell(e, fields, effect)
  redis.call('XADD', outcomes, '*', 'event_id', e.id, 'action', e.action, 'user_id', e.user,
    unpack(fields))
  if e.answer then
    local text = {'event_id', e.id, 'action', e.action, 'user_id', e.user,
      table.concat(fields, '\n')}
    redis.call('DEL', e.answer)
    redis.call('RPUSH', e.answer, table.concat(text, '\n'))
    redis.call('PEXPIRE', e.answer, e.answer_ms)
  end
  if ties_noted then
    if effect then
      untie(e, fields[2] == 'accepted')
    end
    pass_ties_on(e)
  end
end

-- As `tell`, for an event that had all that it asked for. The caller knows the rest.
local function tell_all(e, outcome)
  local now = string.format('%d', in_hand[e.count])
  tell(e, {'outcome', outcome, 'book_ids', table.concat(e.books, ','), 'in_hand', now}, true)
  return in_hand[e.count]
end

-- As `tell`, with `lists`: pairs of a field and books, left out where there are none. Returns the
-- reply.
local function conclude(e, outcome, cause, lists, effect)
  local fields = {'outcome', outcome}
  if cause then
    fields[3], fields[4] = 'cause', cause
  end
  for n = 1, #lists, 2 do
    if #lists[n + 1] > 0 then
      fields[#fields + 1] = lists[n]
      fields[#fields + 1] = table.concat(lists[n + 1], ',')
    end
  end
  fields[#fields + 1] = 'in_hand'
  fields[#fields + 1] = string.format('%d', in_hand[e.count])
  tell(e, fields, effect)
  return table.concat(fields, '\n')
end

---- Acts: what a look at an event leads to. They are called after it and cannot fail.

-- Whether a book is lent to a user, also if it is no book of this call.
local function has(user, book)
  if is_book[book] then
    return loan[book] == user
  end
  return redis.call('HGET', loans_key, book) == user
end

-- The books that are noted of a user.
local function noted_books(user)
  if not is_user[user] then
    is_user[user] = true
    books_of[user] = redis.call('HGET', books_of_key, user) or nil
  end
  local list = {}
  if books_of[user] then
    for book in string.gmatch(books_of[user], '[^,]+') do
      list[#list + 1] = book
    end
  end
  return list
end

local function lend(e, available)
  for _, book in ipairs(available) do
    set('loan', loan, book, e.user)
    set('state', state, book, '=' .. e.id)
  end
  set('in_hand', in_hand, e.count, in_hand[e.count] + #available)
  local list = noted_books(e.user)
  if #list == 0 then
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
  end
  lend(e, e.books)
  return tell_all(e, 'accepted')
end

-- The requests of this call that wait for a book, and those of the books that came free since: a
-- newer request does not get them before the others are tried again.
local awaited, came_free = {}, {}
local function would_overtake(e)
  for _, book in ipairs(e.books) do
    for _, id in ipairs(came_free[book] or {}) do
      if not decided[requests][id] and before(id, e.id) then
        return true
      end
    end
  end
  return false
end

local function wait(e, sorted)
  for _, book in ipairs(e.action == 'request' and e.books or {}) do
    awaited[book] = awaited[book] or {}
    table.insert(awaited[book], e.id)
  end
  if #sorted.have > 0 or #sorted.asked > 0 or e.reserved then
    if not is_mine(e) then
      return {'STALE'}
    end
    let_go(e, sorted.asked)
    put_back(sorted.have)
    -- What shelving said is not true any more.
    e.said, e.answers = '', nil
  end
  return {'WAIT', sorted.in_doubt and 'doubt' or sorted.told_no and 'no'
    or sorted.blocked and 'book' or 'older'}
end

-- Asks shelving for books, after reserving those that are not yet reserved for e.
local function fetch(e, sorted)
  if not is_mine(e) then
    return {'STALE'}
  end
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
    put_back(available)
    lists[7], lists[8] = 'put_back', available
    return conclude(e, 'denied', 'too_many_books', lists, true)
  end
  lend(e, available)
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
    came_free[book] = awaited[book]
  end
  if #mine > 0 then
    set('in_hand', in_hand, e.count, math.max(0, in_hand[e.count] - #mine))
    local list, gone = {}, {}
    for _, book in ipairs(mine) do
      gone[book] = true
    end
    for _, book in ipairs(noted_books(e.user)) do
      if not gone[book] then
        list[#list + 1] = book
      end
    end
    set('books_of', books_of, e.user, #list > 0 and table.concat(list, ',') or nil)
    put_back(mine)
  end
  if #mine == #e.books then
    return tell_all(e, 'returned')
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

-- Whether every book is lent to somebody, and e has nothing that it would have to give back.
local function all_lent(e)
  if e.reserved then
    return false
  end
  for _, book in ipairs(e.books) do
    local is = state[book]
    if not loan[book] or (is and string.sub(is, 1, 1) == '?') then
      return false
    end
  end
  return true
end

local function deny_all(e)
  if not acknowledge(e) then
    return {'STALE'}
  end
  local mine, others = {}, {}
  for _, book in ipairs(e.books) do
    local list = loan[book] == e.user and mine or others
    list[#list + 1] = book
  end
  local lists = {'already_yours', mine, 'lent_to_another', others}
  return conclude(e, 'denied', 'none_available', lists, false)
end

local function look_at_request(e)
  local overtakes = next(came_free) and would_overtake(e)
  if not overtakes and all_there(e) then
    return grant_all
  end
  if all_lent(e) and nothing_older(e) then
    return deny_all
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
    elseif answer == 'yes' or (own and answer == 'again' and not is_handed_off(book)) then
      have[#have + 1] = book
      available[#available + 1] = book
    elseif (own and answer == '')
      or (answer == 'again' and not own and not (kind == '>' and in_transit(is))) then
      -- Before anything else it is asked for under a reservation, so that it can be put back.
      unknown[#unknown + 1] = book
    elseif own then
      asked[#asked + 1] = book
      if answer == 'again' or is_undecided(answer) or e.said == 'certain' and is_handed_off(book) then
        blocked = true
      elseif e.said == 'certain' then
        nowhere[#nowhere + 1] = book
      else
        in_doubt = true
      end
    elseif kind == '?' or (kind == '>' and in_transit(is))
      or (answer ~= '' and answer ~= 'again' and is_undecided(answer)) then
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
    told_no = e.doubt == 'no' or #nowhere > 0,
  }
  if #unknown > 0 then
    return fetch, sorted
  elseif overtakes then
    return wait, sorted
  end
  -- After a final "no" a refusal is foreseeable: a request that reserved its books in every round
  -- until what is older is decided could keep that from being decided (I5).
  local refusal = blocked or in_doubt or sorted.too_many or #available < #e.books
    or sorted.told_no and #free > 0
  if refusal and (blocked or in_doubt or not nothing_older(e)) then
    return wait, sorted
  end
  if #free > 0 then
    if e.doubt and e.doubt ~= 'no' then
      sorted.certain = settled(e.doubt)
      sorted.in_doubt = not sorted.certain
    end
    return sorted.in_doubt and wait or fetch, sorted
  end
  return decide, sorted
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
  local known, is_old                              -- of the last book: nearly always the next one's
  for _, book in ipairs(e.books) do
    local list = not_lent
    if loan[book] == e.user then
      -- Only loans of older requests are meant. A loan without an entry is old.
      local is = state[book] or ''
      if is ~= known then
        local request = string.match(is, '^=(.*)$')
        known, is_old = is, not request or not split(request) or not is_younger(request, e)
      end
      if is_old then
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

-- What is noted to wait for the one in front has nothing to gain from another look: whatever could
-- have made a difference would have taken the note away.
local front_now = ties_noted and in_front()
if front_now then
  load_ties()
end
for n, e in ipairs(events) do
  if front_now and front_now == front_noted and tied[name_of(e)] and e.said == '' and not e.doubt then
    replies[n] = {'WAIT', 'older'}
  else
    try(n, e)
  end
end

local function waits_for_older(reply)
  return type(reply) == 'table' and reply[1] == 'WAIT' and reply[2] == 'older'
end

-- Events that tie are known to wait for each other when all have been tried. Then the one in front
-- is decided; those for which that may make a difference are tried again; then the next in front.
local function break_ties()
  local number_of, tries_left = {}, 4 * #events
  for n, e in ipairs(events) do
    number_of[name_of(e)] = n
  end
  repeat
    local again, progress = {}, false
    for event in pairs(untied) do
      again[#again + 1] = number_of[event]
    end
    untied = {}
    table.sort(again)
    again[#again + 1] = number_of[in_front() or '']
    for _, n in ipairs(again) do
      if waits_for_older(replies[n]) then
        try(n, events[n])
        tries_left = tries_left - 1
        progress = progress or not waits_for_older(replies[n])
      end
    end
  until not progress or tries_left <= 0
end

if ties_noted then
  break_ties()
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
write_hash(books_of_key, 'books_of', books_of)

if ties_cleared then
  redis.call('DEL', ties)
end
if tied then
  changed.tied = {}
  for event in pairs(ties_changed) do
    table.insert(changed.tied, event)
  end
  if front_noted ~= front_stored then
    table.insert(changed.tied, '#front')
    tied['#front'] = front_noted
  end
  write_hash(ties, 'tied', tied)
  if #changed.tied > 0 then
    redis.call('EXPIRE', ties, TIES_TTL_S)
  end
end

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
  if #ids > 0 then
    redis.call('XTRIM', outcomes, 'MAXLEN', '~', outcomes_kept)
  end
  if keep_events then
    -- They stay.
  elseif can_be_trimmed(stream, ids) then
    redis.call('XTRIM', stream, 'MINID', ids[#ids])
    redis.call('XDEL', stream, ids[#ids])
  else
    in_slices(ids, function(first, last)
      redis.call('XDEL', stream, unpack(ids, first, last))
    end)
  end
end

-- Other instances may wait for what was decided here. Who is not permitted to ring works on: the
-- others then find out by themselves.
if #decided_of[requests] + #decided_of[returns] > 0 then
  redis.pcall('PUBLISH', ARGV[9], me)
end
return replies
