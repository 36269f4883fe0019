-- refusals.lua: what decide.lua needs only where something may be refused, or somebody is noted to
-- wait for another. Not a script of its own: it is put in front of decide.lua, behind order.lua and
-- groups.lua.
--
-- The whole file is one function, called where something of it is first needed, with the table `call`
-- that it shares with decide.lua, whose KEYS and ARGV it sees, and returns.lua. The functions in it
-- are not indented for that. What looks something up runs between writes for other events and must
-- not raise an error: what may fail is asked by pcall, and a failure means "wait".

local function refusals(call)
local requests, returns, handoffs, ties = call.requests, call.returns, call.handoffs, call.ties
local lending_group, shelving_group, me = call.group, ARGV[6], ARGV[8]
local loan, state, stored, in_hand = call.loan, call.state, call.stored, call.in_hand
local decided = call.decided
local groups = groups()
local group_of, is_id = groups.group_of, groups.is_id

-- The consumers that stand in front of the events, see the header of decide.lua.
local silent, reference = {}, {}
local at = 11
for n = 1, tonumber(ARGV[at]) do
  silent[ARGV[at + n]] = true
end
at = at + 1 + tonumber(ARGV[at])
for n = 1, tonumber(ARGV[at]) do
  reference[n] = ARGV[at + n]
end

---- Order (I8). Looked up only when something is about to be refused.

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
  until #page < count or page[#page][1] == LAST_OF_ALL
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
  local list = undecided_of[stream]
  if not list then
    list = {at = 1, from = '-', page = next(silent) and LONGEST_PAGE or 1}
    undecided_of[stream] = list
  end
  while true do
    while list[list.at] do
      local id = list[list.at]
      if not decided[stream][id] then
        return id
      end
      list.at = list.at + 1
    end
    if list.from then
      local page = redis.pcall('XPENDING', stream, lending_group, list.from, '+', list.page)
      if page.err then
        return nil
      end
      for _, entry in ipairs(page) do
        if not silent[entry[2]] then
          list[#list + 1] = entry[1]
        end
      end
      local last = #page == list.page and page[#page][1]
      list.from = last and last ~= LAST_OF_ALL and '(' .. last
      list.page = math.min(4 * list.page, LONGEST_PAGE)
    elseif list.at_end then
      return ''
    else
      local group = group_of(stream, lending_group)
      if not group then
        return nil
      end
      local delivered = group['last-delivered-id']
      if delivered ~= LAST_OF_ALL then
        local entries = redis.pcall('XRANGE', stream, '(' .. delivered, '+', 'COUNT', 1)
        if entries.err then
          return nil
        end
        list[#list + 1] = entries[1] and entries[1][1]
      end
      list.at_end = true
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
  local noted = call.are_ties and redis.call('HGETALL', ties) or {}
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
    call.are_ties = true
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
      local entries = redis.pcall('XRANGE', stream, from, last, 'COUNT', MOST_TIES)
      if entries.err then
        return nil
      end
      for _, entry in ipairs(entries) do
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
-- If something is, notes that e waits, for the event in front to see.
local function nothing_older(e)
  local own = oldest(e.stream)
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

-- A decision had an effect: what it may let go on has to try again before it counts as waiting.
-- Loans concern returns of that user; books that come free, and a user who has fewer, requests.
local function untie(e, accepted)
  load_ties()
  if not tied_by_name then
    tied_by_name = {request = {}, ['return'] = {}}
    for event, names in pairs(tied) do
      if names then
        note_by_name(event)
      end
    end
  end
  local by_name = tied_by_name[accepted and 'return' or 'request']
  for _, name in ipairs({e.user, unpack(accepted and {} or e.books)}) do
    for _, event in ipairs(by_name[name] or {}) do
      if tied[event] then
        tied[event], ties_changed[event], untied[event] = false, true, true
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
    tied[event], ties_changed[event] = false, true
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

---- Hand-offs and doubts.

-- {delivered = id, pending = number} of the shelving group; delivered "0-0" if there is no group.
local function shelving()
  if not call.shelving_at then
    local group = group_of(handoffs, shelving_group)
    call.shelving_at = group and {delivered = group['last-delivered-id'], pending = group.pending}
      or {delivered = '0-0', pending = 0}
  end
  return call.shelving_at
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

-- Whether the hand-off that a book's state names is still to be done.
local function in_transit(is)
  local id = string.sub(is, 2)
  if call.undone[id] == nil then
    -- What is no id names no hand-off.
    call.undone[id] = is_id(id) and is_undone_now(handoffs, shelving_group, shelving().delivered, id)
  end
  return call.undone[id]
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
    local entries = redis.pcall('XRANGE', handoffs, from, '+', 'COUNT', groups.MOST_HANDOFFS)
    too_many_handed_off = not first or entries.err ~= nil or #entries == groups.MOST_HANDOFFS
    handed_off = groups.handoffs_by_book(too_many_handed_off and {} or entries)
  end
  for _, id in ipairs(handed_off[book] or {}) do
    if in_transit('>' .. id) then
      return true
    end
  end
  return too_many_handed_off
end

local reserved
-- Whether an instance of the reference application has a book reserved for a request that it works on.
-- e is any request: the others' keys are named like its own.
local function is_reserved_by_reference(book, e)
  if reserved == nil then
    reserved = groups.reserved_by(requests, lending_group, reference, e.temp, e.id) or false
  end
  return not reserved or reserved[book]
end

-- Whether what shelving said of a book has been overtaken: it is on its way to its shelf, or reserved, and
-- neither leaves a mark.
local function has_moved_on(book, e)
  return is_handed_off(book) or is_reserved_by_reference(book, e)
end

-- Whether a request that shelving named is undecided: then it has its book reserved.
local function is_undecided(request)
  if decided[requests][request] or not is_id(request) then
    return false
  end
  local group = group_of(requests, lending_group)
  return is_undone_now(requests, lending_group, group and group['last-delivered-id'] or '0-0', request)
end

-- Why a "no" of shelving could come too early: the last hand-off, if any is undone (the book may
-- be in it), and the last request delivered, if reference instances work on any (they tell
-- nobody what they have reserved). "" if there is neither.
local function doubt()
  if not call.doubt then
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
    call.doubt = handoff == '-' and request == '-' and '' or handoff .. ' ' .. request
  end
  return call.doubt
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

---- Acts: what a look at an event leads to. They are called after it and cannot fail.

-- Whether e is still this instance's to work on: if its group was lost and made anew, it may have
-- been delivered to another, and what it has is theirs.
local function is_mine(e)
  local pending = redis.pcall('XPENDING', e.stream, lending_group, e.id, e.id, 1, me)
  return not pending.err and #pending == 1
end

-- Lets go what e has only asked for, and empties the reference application's reservation.
local function let_go(e, asked)
  for _, book in ipairs(asked) do
    state[book], call.changed[book] = false, true
  end
  if e.reserved then
    redis.call('DEL', e.temp)
    call.taking_back().put_back(e.extra)
    e.reserved = nil
  end
end

-- As `tell`, with `lists`: pairs of a field and books, left out where there are none. Returns the
-- reply.
local function conclude(e, outcome, cause, lists, effect)
  local fields = {}
  if cause then
    fields[1], fields[2] = 'cause', cause
  end
  for n = 1, #lists, 2 do
    if #lists[n + 1] > 0 then
      fields[#fields + 1] = lists[n]
      fields[#fields + 1] = table.concat(lists[n + 1], ',')
    end
  end
  fields[#fields + 1] = 'in_hand'
  fields[#fields + 1] = in_hand[e.count]
  call.tell(e, effect, outcome, unpack(fields))
  return 'outcome\n' .. outcome .. '\n' .. table.concat(fields, '\n')
end

local function wait(e, sorted)
  for _, book in ipairs(e.action == 'request' and e.books or {}) do
    call.awaited = call.awaited or {}
    call.awaited[book] = call.awaited[book] or {}
    table.insert(call.awaited[book], e.id)
  end
  if #sorted.have > 0 or #sorted.asked > 0 or e.reserved then
    if not is_mine(e) then
      return {'STALE'}
    end
    let_go(e, sorted.asked)
    call.taking_back().put_back(sorted.have)
    -- What shelving said is not true any more.
    e.said, e.said_of = '', nil
  end
  return {'WAIT', sorted.ask_again and 'again' or sorted.in_doubt and 'doubt'
    or sorted.told_no and 'no' or sorted.blocked and 'book' or 'older'}
end

-- Asks shelving for books, after reserving those that are not yet reserved for e.
local function fetch(e, sorted)
  if not is_mine(e) then
    return {'STALE'}
  end
  local reply = {'FETCH', sorted.certain and '' or doubt()}
  for _, book in ipairs(#sorted.unknown > 0 and sorted.unknown or sorted.free) do
    state[book], call.changed[book] = '?' .. e.id, true
    reply[#reply + 1] = book
  end
  return reply
end

local function decide(e, sorted)
  local available = sorted.available
  if not call.acknowledge(e) then
    return {'STALE'}
  end
  let_go(e, sorted.asked)
  local lists = {'already_yours', sorted.mine, 'lent_to_another', sorted.others,
    'unavailable', sorted.nowhere}
  if #available == 0 then
    return conclude(e, 'denied', 'none_available', lists, false)
  end
  call.take_from_storage(sorted.instant)
  if sorted.too_many then
    call.taking_back().put_back(available)
    lists[7], lists[8] = 'put_back', available
    return conclude(e, 'denied', 'too_many_books', lists, false)
  end
  call.lend(e, available)
  return conclude(e, 'accepted', nil, {'book_ids', available, unpack(lists)}, true)
end

local function take_some_back(e, sorted)
  if not call.acknowledge(e) then
    return {'STALE'}
  end
  local mine = sorted.mine
  call.taking_back().take_back(e, mine)
  local lists = {'book_ids', mine, 'lent_to_another', sorted.others, 'not_lent', sorted.not_lent}
  return conclude(e, #mine > 0 and 'returned' or 'unchanged', nil, lists, #mine > 0)
end

local function deny_all(e)
  if not call.acknowledge(e) then
    return {'STALE'}
  end
  -- Looked at before they are sorted: nearly always the user has none, and then lists are not needed.
  local has_some = false
  for n = 1, #e.books do
    has_some = has_some or loan[e.books[n]] == e.user
  end
  if not has_some then
    local now = in_hand[e.count]
    call.tell(e, false, 'denied', 'cause', 'none_available',
      'lent_to_another', table.concat(e.books, ','), 'in_hand', now)
    return {now}
  end
  local mine, others = {}, {}
  for _, book in ipairs(e.books) do
    local list = loan[book] == e.user and mine or others
    list[#list + 1] = book
  end
  local lists = {'already_yours', mine, 'lent_to_another', others}
  return conclude(e, 'denied', 'none_available', lists, false)
end

---- Looks, as in decide.lua.

-- A newer request does not get a book that came free in this call before those that wait for it are
-- tried again.
local function would_overtake(e)
  if not call.came_free then
    return false
  end
  for _, book in ipairs(e.books) do
    for _, id in ipairs(call.came_free[book] or {}) do
      if not decided[requests][id] and before(id, e.id) then
        return true
      end
    end
  end
  return false
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

-- Sorts the books of a request, each by the first line that fits, and says what follows. "Its mark" is a
-- reservation by e in the states; the answer is shelving's.
--   lent                                            mine, others: refused
--   reserved for e by the reference application     have
--   in automated storage                            instant
--   answer "yes"; or its mark and "again", and it
--     was not put back since                        have
--   its mark, but no answer; or "again" without
--     its mark, and it is not on its way            unknown: asked for, under its mark
--   its mark, and another answer                    asked; and in_doubt, or if the answer is final nowhere,
--                                                   or blocked: the book was put back since, perhaps
--                                                   (then ask_again), or the request that has it is undecided
--   another's mark, on its way, or the request
--     that has it is undecided                      blocked
--   anything else                                   free: it gets its mark, and is asked for
local function look_at_request(e)
  if all_lent(e) and nothing_older(e) then
    return deny_all
  end
  local have, instant, free = {}, {}, {}           -- available, for certain or perhaps
  local asked, unknown = {}, {}                    -- reserved for e without having the book
  local mine, others, nowhere = {}, {}, {}         -- refused
  local available, blocked, in_doubt, ask_again = {}, false, false, false
  for n, book in ipairs(e.books) do
    local is = state[book]
    local kind = is and string.sub(is, 1, 1)
    local own = kind == '?' and string.sub(is, 2) == e.id
    local answer = e.said == 'yes' and 'yes' or e.said_of and e.said_of[n] or ''
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
    elseif answer == 'yes' or (own and answer == 'again' and not has_moved_on(book, e)) then
      have[#have + 1] = book
      available[#available + 1] = book
    elseif (own and answer == '')
      or (answer == 'again' and not own and not (kind == '>' and in_transit(is))) then
      -- Before anything else it is asked for under a reservation, so that it can be put back.
      unknown[#unknown + 1] = book
    elseif own then
      asked[#asked + 1] = book
      if answer == 'again' then
        -- It may be out for e still, and then nobody else gets it before e has put it back: e has to ask
        -- for it until that is known.
        blocked, ask_again = true, true
      elseif is_undecided(answer) or e.said == 'certain' and has_moved_on(book, e) then
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
    ask_again = ask_again, in_doubt = in_doubt, too_many = in_hand[e.count] + #available > call.limit,
    told_no = e.doubt == 'no' or #nowhere > 0,
  }
  if #unknown > 0 then
    return fetch, sorted
  elseif would_overtake(e) then
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

-- A return some of whose books are not its user's; `sorted` tells which.
local function look_at_partial_return(e, sorted)
  if not nothing_older(e) then
    return wait, {have = {}, asked = {}}
  end
  return take_some_back, sorted
end

---- Ties in a whole call.

-- What is noted to wait for the one in front has nothing to gain from another look: whatever could
-- have made a difference would have taken the note away.
local front_at_first = call.are_ties and in_front()
if front_at_first then
  load_ties()
end
local function still_waits(e)
  return front_at_first and front_at_first == front_noted and tied[name_of(e)] and e.said == ''
    and not e.doubt
end

-- The outcome of e is written.
local function after_telling(e, outcome, effect)
  if effect then
    untie(e, outcome == 'accepted')
  end
  pass_ties_on(e)
end

local function waits_for_older(reply)
  return type(reply) == 'table' and reply[1] == 'WAIT' and reply[2] == 'older'
end

-- How many events are named in one reply at most.
local MOST_UNTRIED = 256
-- What e, which is in front, waits for: events that tie with it and are not known to wait for it. Those
-- that were tried in this call are left out: they wait for a book, or a decision of this call has them
-- tried again.
local function untried(e, number_of)
  local list, stream = {}, other_stream(e)
  load_ties()
  for _, event in ipairs(tying(stream, split(e.id), is_ordered(e.id)) or {}) do
    local waits = number_of[event] or decided[stream][string.match(event, ':(.*)')]
      or (front_noted == name_of(e) and tied[event])
    if not waits and #list < MOST_UNTRIED then
      list[#list + 1] = event
    end
  end
  return list
end

-- Events that tie are known to wait for each other when all have been tried. Then the one in front
-- is decided; those for which that may make a difference are tried again; then the next in front.
local function break_ties(events, replies, try)
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
  local front = number_of[in_front() or '']
  if front and waits_for_older(replies[front]) then
    replies[front] = {'WAIT', 'older', unpack(untried(events[front], number_of))}
  end
end

local function write_ties()
  if ties_cleared then
    redis.call('DEL', ties)
  end
  if not tied then
    return
  end
  if front_noted ~= front_stored then
    ties_changed['#front'], tied['#front'] = true, front_noted or false
  end
  call.write_hash(ties, ties_changed, tied)
  if next(ties_changed) then
    redis.call('EXPIRE', ties, TIES_TTL_S)
  end
end

return {
  look_at_request = look_at_request, look_at_partial_return = look_at_partial_return,
  would_overtake = would_overtake, still_waits = still_waits, after_telling = after_telling,
  break_ties = break_ties, write_ties = write_ties,
}
end

