-- decide.lua: work on requests and returns, in the order given, as far as each can go now.
--
-- After order.lua, groups.lua, refusals.lua, returns.lua and alone.lua.
-- The script in which LendingService decides. For each event it either
--   commits: effect, outcome, hand-off to shelving, answer, XACK and XDEL together,
--   puts back what the event has reserved, because a refusal would be too early (WAIT), or
--   reserves books that only ShelvingService can know about, and asks for them (FETCH).
-- On its first try by an instance a request comes with ShelvingService's answers already. A "yes"
-- is true: the book was on its shelf and is out for this request now. "Again" says that it was
-- handed out to this request before, which may have put it back since: it counts only under a
-- reservation made here. A "no" names the request that has the book. It is not final, since the
-- book may have come back in the meantime: a book that is nowhere else is reserved here, asked for
-- again, and only the second "no" counts. What waits has nothing: it is tried without asking first, or
-- after asking for all its books once more, as on its first try.
--
-- KEYS  1 the instance's lock       2 requests (stream)      3 returns (stream)
--       4 hand-offs (stream)        5 loans (hash)           6 book states (hash)
--       7 automated storage (set)   8 outcomes (stream)      9 ties (hash)
--       10 the books of each user (hash)    11 answers of ShelvingService (hash)
--       then for each event: the user's count (string), the reservation that the reference
--       application may have left (set), and, if an answer is wished, the answer (list)
--       Besides, not among KEYS: the reservations of the requests that instances of the reference
--       application work on. Which those are, only this script finds out.
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
--       {number}                          denied, since all its books are lent to others: so many has
--                                         the user
--       text                              any other outcome: its fields from "outcome" on, names and
--                                         values in turn, a line each
--       {"WAIT", "older" | "book" | "doubt" | "no" | "again", event, ...}   "no": shelving has said a
--                                         final "no"; "again": a book may still be out for this request,
--                                         which has to ask for all of its books on its next try. The events,
--                                         "request:<id>" or "return:<id>", are not of this call, and are to
--                                         be tried before this one can be refused
--       {"FETCH", doubt, book, ...}       doubt is "" or goes into the next try, see above
--       {"STALE"}                         not pending any more: somebody else decides it; nothing
--                                         was changed, since what it had is theirs now
--       {"FAILED", cause}                 cannot be worked on: to be dead-lettered
--
-- Lua has no rollback: everything is read and every type is checked before the first write, and
-- what is changed is changed in memory first and written at the end (I1, I2, I3, I4). Within one
-- script, reads after an event's commit go by the memory. A refusal waits for what is older (I8): all
-- about that is in refusals.lua, and how books are taken back in returns.lua.
--
-- Redis runs this text from its first line at every call, and for a few events it takes longer to make
-- the functions, each with a reference to every outer variable that it uses, than to decide. So
-- functions share one table, `call`, instead of variables, and those that few calls need are made when
-- one of them is needed. The code outside of functions has locals, which cost nothing.
--
-- The state of a book: "?17-0" reserved by request 17-0; "=17-0" lent to request 17-0; ">17-0" on
-- its way to its shelf in hand-off 17-0.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end

-- What fetch.lua replied, word and answers, unless every book was on its shelf; and how much of that
-- was taken.
local fetched, taken = nil, 1
if ARGV[10] ~= '' then
  -- It may have been left to a later fetch, if this call had to be sent twice.
  local head, answer = ARGV[1] .. ' ' .. ARGV[10] .. ' ', redis.call('HGET', KEYS[11], ARGV[8])
  if not answer or string.sub(answer, 1, #head) ~= head then
    return {'UNASKED'}
  end
  fetched = #answer > #head and cmsgpack.unpack(string.sub(answer, #head + 1)) or nil
end

-- Writes an outcome, its fields in names and values in turn, and the answer if one is wished.
local function tell(answer, answer_ms, ...)
  redis.call('XADD', KEYS[8], '*', ...)
  if answer then
    redis.call('DEL', answer)
    redis.call('RPUSH', answer, table.concat({...}, '\n'))
    redis.call('PEXPIRE', answer, answer_ms)
  end
end

-- Every book was handed out: if it is one request's, that may be all there is to it.
if ARGV[10] ~= '' and not fetched then
  local reply = lend_alone(tell)
  if reply then
    return reply
  end
end

-- What the functions below, and those of refusals.lua and returns.lua, share.
local requests, returns = KEYS[2], KEYS[3]
local call = {
  requests = requests, returns = returns, handoffs = KEYS[4], loans = KEYS[5], storage = KEYS[7],
  outcomes = KEYS[8], ties = KEYS[9], books_of_users = KEYS[10],
  group = ARGV[5], limit = tonumber(ARGV[3]),
  -- Of books the user, the state, and whether they are stored; of the keys of counts the number; of
  -- users the books, joined by commas. In loan, state and books_of nil is what was not asked for, and
  -- false what is not there.
  loan = {}, state = {}, stored = {}, in_hand = {}, books_of = {},
  -- What of that was changed here, to be written at the end: books whose loan or state was, books
  -- that came into storage or left it, users with the keys of their counts.
  changed = {}, moved = {}, changed_users = {},
  -- How many books more are stored by what is done here.
  stored_more = 0,
  -- Of each stream the decided events, in one table: their ids in turn, and true at each id.
  decided = {[requests] = {}, [returns] = {}},
  -- Of hand-offs whether they are still to be done, as far as it was asked for.
  undone = {},
  -- Whether anybody is noted to wait for another.
  are_ties = false,
  -- Made when first needed: what `refusals` and `taking_back` return; `awaited`, of books the requests
  -- of this call that wait for them; `came_free`, the same of those that came free since; `shelving_at`,
  -- how far shelving's group has come, and the `doubt` of this moment, until the next hand-off.
}

---- Arguments to tables.

-- Past the two lists of consumers, which refusals.lua reads.
local at, next_key = 11, 12
at = at + 1 + tonumber(ARGV[at])
at = at + 1 + tonumber(ARGV[at])

local loan, state, in_hand = call.loan, call.state, call.in_hand
local events, books, counts, forms = {}, {}, {}, {}
-- Keys that are nearly never there: notes of ties, reservations of the reference application, and
-- counts of a wrong type, which MGET takes for absent ones. All are looked for in one go.
local unlikely = {call.ties}
local requests_here = 0
while at <= #ARGV do
  local form = forms[ARGV[at]]
  if not form then
    local action, n, said, answer_ms, doubt =
      string.match(ARGV[at], '^(%a+) (%d+) ([%a_]+) (%d+) (%a+)$')
    form = {
      action = action, n = tonumber(n), said = said ~= 'nothing' and said or '',
      answer_ms = answer_ms ~= '0' and answer_ms, doubt = doubt == 'doubt',
    }
    forms[ARGV[at]] = form
  end
  local n, first, is_request = form.n, at + (form.doubt and 4 or 3), form.action == 'request'
  -- Eight fields are all that most events need: with a ninth the table is made anew, twice as large.
  local e = {
    action = form.action, id = ARGV[at + 1], user = ARGV[at + 2], said = form.said,
    books = {unpack(ARGV, first, first + n - 1)}, count = KEYS[next_key],
    stream = is_request and requests or returns, temp = is_request and KEYS[next_key + 1] or nil,
  }
  if form.doubt then
    e.doubt = ARGV[at + 3]
  end
  if form.answer_ms then
    e.answer, e.answer_ms = KEYS[next_key + 2], form.answer_ms
  end
  if is_request then
    requests_here = requests_here + 1
    unlikely[#unlikely + 1] = e.temp
  end
  next_key = next_key + (e.answer and 3 or 2)
  if not in_hand[e.count] then
    in_hand[e.count] = 0
    counts[#counts + 1] = e.count
  end
  at = first + n
  if e.said == 'fetched' and not fetched then
    e.said = 'yes'
  elseif e.said == 'fetched' then
    e.said, e.said_of = 'yes', {}
    for k = 1, n do
      taken = taken + 1
      e.said_of[k] = fetched[taken]
      e.said = e.said_of[k] == 'yes' and e.said or 'first'
    end
  elseif e.said ~= '' and e.said ~= 'yes' then
    e.said_of = {unpack(ARGV, at, at + n - 1)}
    at = at + n
    for k = 1, n do
      if e.said_of[k] == 'fetched' then
        taken = taken + 1
        e.said_of[k] = not fetched and 'yes' or fetched[taken]
      end
    end
  end
  -- Of a book that is lent, the state tells a return whose loan it is, and a request that may have
  -- something reserved what that is. To all others it does not matter, and is not read: a reservation
  -- by a request that is delivered anew after its group was lost, of a book that was lent meanwhile,
  -- is left to the keeper's sweep.
  local needs_state = not is_request or e.said ~= ''
  for k = 1, n do
    local book = e.books[k]
    if loan[book] == nil then
      loan[book] = false
      books[#books + 1] = book
    end
    if needs_state then
      state[book] = false
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

-- What a hash has of some fields, into a table.
local function read_hash(key, fields, values)
  for first = 1, #fields, SLICE do
    for n, value in ipairs(redis.call('HMGET', key, slice(fields, first))) do
      values[fields[first + n - 1]] = value
    end
  end
end

read_hash(call.loans, books, loan)
local with_state = {}
for n = 1, #books do
  if not loan[books[n]] or state[books[n]] == false then
    with_state[#with_state + 1] = books[n]
  end
end
read_hash(KEYS[6], with_state, state)

-- A book that is lent as well is counted as lent, wherever else it may be. Looked through whole, the
-- storage is cheaper than so many questions; but somebody may have put anything there.
local stored = call.stored
if #books > tonumber(ARGV[2]) and redis.call('SCARD', call.storage) <= SLICE then
  for _, book in ipairs(redis.call('SMEMBERS', call.storage)) do
    stored[book] = true
  end
else
  for first = 1, #books, SLICE do
    for n, is in ipairs(redis.call('SMISMEMBER', call.storage, slice(books, first))) do
      if is == 1 then
        stored[books[first + n - 1]] = true
      end
    end
  end
end

-- By key: why events that need it cannot be worked on.
local broken = {}
for first = 1, #counts, SLICE do
  for n, value in ipairs(redis.call('MGET', slice(counts, first))) do
    local key = counts[first + n - 1]
    if not value then
      unlikely[#unlikely + 1] = key
    elseif #value < 10 and string.match(value, '^%-?%d+$') then
      -- Of "-0" this makes 0.
      in_hand[key] = tonumber(value) + 0
    else
      broken[key] = 'count_not_a_number'
    end
  end
end

-- For whoever asks what a user has. The reference application knows nothing of it, so it may name
-- books that the user has no more, and miss some. A request whose books are all lent does not need
-- it, unless one of them is returned first: then it is read when it is needed.
local books_of, users = call.books_of, {}
for n = 1, #events do
  local e = events[n]
  if books_of[e.user] == nil then
    local may_change = e.action == 'return'
    for k = 1, #e.books do
      may_change = may_change or not loan[e.books[k]]
    end
    if may_change then
      books_of[e.user] = false
      users[#users + 1] = e.user
    end
  end
end
read_hash(call.books_of_users, users, books_of)

local any = 0
for first = 1, #unlikely, SLICE do
  any = any + redis.call('EXISTS', slice(unlikely, first))
end
call.are_ties = any > 0 and redis.call('HLEN', call.ties) > 0
if any > (call.are_ties and 1 or 0) then
  for _, key in ipairs(counts) do
    local of_type = redis.call('TYPE', key).ok
    if of_type ~= 'string' and of_type ~= 'none' then
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
        elseif not redis.call('HGET', call.loans, book) then
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
redis.call('XLEN', call.handoffs)
if #with_state == 0 then
  redis.call('HLEN', KEYS[6])
end
if #users == 0 then
  redis.call('HLEN', call.books_of_users)
end
redis.call('XTRIM', call.outcomes, 'MAXLEN', '~', ARGV[4])

---- What few calls need.

-- Most calls refuse nothing.
function call.refusals()
  call.made_refusals = call.made_refusals or refusals(call)
  return call.made_refusals
end

-- Many take nothing back, and put nothing back that a request had.
function call.taking_back()
  call.made_taking_back = call.made_taking_back or taking_back(call)
  return call.made_taking_back
end

---- Writing what was changed in memory.

local function sliced_call(command, key, list)
  for first = 1, #list, SLICE do
    redis.call(command, key, slice(list, first))
  end
end

-- Writes those fields of a hash that are in a set: what is false is deleted, what is nil was never read
-- and stays as it is.
function call.write_hash(key, changed, values)
  local fields, gone, n = {}, {}, 0
  for field in pairs(changed) do
    local value = values[field]
    if value then
      fields[n + 1], fields[n + 2] = field, value
      n = n + 2
    elseif value == false then
      gone[#gone + 1] = field
    end
  end
  sliced_call('HSET', key, fields)
  sliced_call('HDEL', key, gone)
end

---- Effects. They run between writes and cannot fail.

-- The commit's first write. Returns false if the event is not pending any more.
function call.acknowledge(e)
  if redis.call('XACK', e.stream, call.group, e.id) == 0 then
    return false
  end
  local decided = call.decided[e.stream]
  decided[#decided + 1], decided[e.id] = e.id, true
  return true
end

function call.take_from_storage(list)
  local stored = call.stored
  for n = 1, #list do
    local book = list[n]
    if stored[book] then
      stored[book], call.moved[book] = false, true
      call.stored_more = call.stored_more - 1
    end
  end
end

-- Whether a book is lent to a user, also if it is no book of this call.
local function has(user, book)
  if call.loan[book] == nil then
    return redis.call('HGET', call.loans, book) == user
  end
  return call.loan[book] == user
end

-- The books that are noted of a user, if any are.
function call.noted_books(user)
  local books_of = call.books_of
  if books_of[user] == nil then
    books_of[user] = redis.call('HGET', call.books_of_users, user)
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

function call.lend(e, available)
  local loan, state, changed, lent = call.loan, call.state, call.changed, '=' .. e.id
  for n = 1, #available do
    local book = available[n]
    loan[book], state[book], changed[book] = e.user, lent, true
  end
  call.in_hand[e.count] = call.in_hand[e.count] + #available
  call.changed_users[e.user] = e.count
  local list = call.noted_books(e.user)
  if not list then
    call.books_of[e.user] = table.concat(available, ',')
    return
  end
  -- With more than a user may have, some are not true any more.
  local outdated = #list + #available > call.limit
  local all, is_new = {}, {}
  for n, book in ipairs(available) do
    all[n], is_new[book] = book, true
  end
  for _, book in ipairs(list) do
    if not is_new[book] and (not outdated or has(e.user, book)) then
      all[#all + 1] = book
    end
  end
  call.books_of[e.user] = table.concat(all, ',')
end

-- Writes the outcome. After it come its fields, names and values in turn.
function call.tell(e, effect, outcome, ...)
  tell(e.answer, e.answer_ms, 'event_id', e.id, 'action', e.action, 'user_id', e.user, 'outcome', outcome,
    ...)
  if call.are_ties then
    call.refusals().after_telling(e, outcome, effect)
  end
end

-- As `tell`, for an event that had all that it asked for. The caller knows the rest.
function call.tell_all(e, outcome)
  local now = call.in_hand[e.count]
  call.tell(e, true, outcome, 'book_ids', table.concat(e.books, ','), 'in_hand', now)
  return now
end

---- Acts: what a look at an event leads to. They are called after it and cannot fail.

-- Every book of a request is there, and its user may have them all.
local function grant_all(e)
  if not call.acknowledge(e) then
    return {'STALE'}
  end
  call.take_from_storage(e.books)
  call.lend(e, e.books)
  return call.tell_all(e, 'accepted')
end

---- Looks: read only, except for a note that an event waits. Each returns an act and what it needs.

-- Whether every book is there without any question: in storage, or handed out by shelving.
local function all_there(e)
  if e.reserved or call.in_hand[e.count] + #e.books > call.limit then
    return false
  end
  local is_handed_out = e.said == 'yes'
  for n = 1, #e.books do
    local book = e.books[n]
    if call.loan[book] or (not call.stored[book] and (not is_handed_out or call.state[book])) then
      return false
    end
  end
  return true
end

local function look(e)
  if e.action == 'return' then
    return call.taking_back().look_at_return(e)
  elseif all_there(e) and not (call.came_free and call.refusals().would_overtake(e)) then
    return grant_all
  end
  return call.refusals().look_at_request(e)
end

---- All events, then what they changed.

local replies = {}
local function try(n, e)
  local cause = broken[e.count] or broken[e.temp or '']
  if cause then
    replies[n] = {'FAILED', cause}
    return
  end
  local ok, act, sorted = pcall(look, e)
  if ok then
    replies[n] = act(e, sorted)
  else
    replies[n] = {'FAILED', 'script_error: ' .. tostring(type(act) == 'table' and act.err or act)}
  end
end

local were_ties = call.are_ties
for n = 1, #events do
  if were_ties and call.refusals().still_waits(events[n]) then
    replies[n] = {'WAIT', 'older'}
  else
    try(n, events[n])
  end
end
if call.are_ties then
  call.refusals().break_ties(events, replies, try)
end

call.write_hash(call.loans, call.changed, loan)
call.write_hash(KEYS[6], call.changed, state)
call.write_hash(call.books_of_users, call.changed_users, books_of)
if call.are_ties then
  call.refusals().write_ties()
end

local arrived, left = {}, {}
for book in pairs(call.moved) do
  local list = stored[book] and arrived or left
  list[#list + 1] = book
end
sliced_call('SREM', call.storage, left)
sliced_call('SADD', call.storage, arrived)

local numbers = {}
for _, count in pairs(call.changed_users) do
  numbers[#numbers + 1] = count
  numbers[#numbers + 1] = in_hand[count]
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

-- From this number on it is worth a look at whether they can be deleted in one go.
local MANY = 16
-- XDEL searches a block of the stream for each id. Where everything up to the last of them is
-- decided, whoever decided it, and nobody else reads the stream, trimming it is much cheaper.
local function can_be_trimmed(stream, ids)
  if #ids < MANY or not are_sorted(ids) then
    return false
  end
  local group, number_of_groups = groups().group_of(stream, call.group)
  local last = ids[#ids]
  local pending = redis.pcall('XPENDING', stream, call.group, '-', last, 1)
  return number_of_groups == 1 and not pending.err and #pending == 0
    and not before(group['last-delivered-id'], last)
end

local is_any_decided = false
for stream, ids in pairs(call.decided) do
  is_any_decided = is_any_decided or #ids > 0
  if ARGV[7] == 'keep' then
    -- They stay.
  elseif can_be_trimmed(stream, ids) then
    redis.call('XTRIM', stream, 'MINID', ids[#ids])
    redis.call('XDEL', stream, ids[#ids])
  else
    sliced_call('XDEL', stream, ids)
  end
end

-- Other instances may wait for what was decided here. Those who listen are told the users and books for whom it
-- changed something, in messages of no more than so many bytes; of books that a refusal puts back they hear when
-- these arrive. For an event that is longer by itself the name has to do, as each of them would have to
-- read it. Who is not permitted to ring works on: the others then find out by themselves.
local MOST_NEWS = 16384
local function tell_news()
  local lines, size, is_rung = {ARGV[8]}, 0, false
  local function ring(message)
    redis.pcall('PUBLISH', ARGV[9], message)
    lines, size, is_rung = {ARGV[8]}, 0, true
  end
  for _, e in ipairs(events) do
    if call.decided[e.stream][e.id] then
      local is_return = e.stream == returns
      local parts = {call.changed_users[e.user] and e.user or ''}
      for n = 1, #e.books do
        local book = e.books[n]
        if call.changed[book] and (is_return or string.sub(state[book] or '', 1, 1) ~= '>') then
          parts[#parts + 1] = book
        end
      end
      local line = table.concat(parts, ',')
      if size > 0 and size + #line > MOST_NEWS then
        ring(table.concat(lines, '\n'))
      end
      if #line > MOST_NEWS then
        ring(ARGV[8])
      elseif line ~= '' then
        -- Else it changed nothing for anybody.
        lines[#lines + 1], size = line, size + #line
      end
    end
  end
  if size > 0 then
    ring(table.concat(lines, '\n'))
  elseif not is_rung then
    ring(ARGV[8] .. '\n')
  end
end

if is_any_decided then
  -- Mostly nobody listens. Who does so by a pattern, or at another node, is not counted, and hears that there
  -- is news. An error has no second part.
  if redis.pcall('PUBSUB', 'NUMSUB', ARGV[9])[2] == 0 then
    redis.pcall('PUBLISH', ARGV[9], ARGV[8])
  else
    tell_news()
  end
end
return replies
