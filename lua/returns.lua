-- returns.lua: taking books back, and putting back what a request had and does not get, for
-- decide.lua. Not a script of its own: it is put in front of that, behind order.lua, groups.lua and
-- refusals.lua.
--
-- The whole file is one function, called where something of it is first needed, with the table `call`
-- that it shares with decide.lua, whose KEYS and ARGV it sees, and refusals.lua. The functions in it
-- are not indented for that.

local function taking_back(call)

-- As stored before this call: what it changes is written at its end.
local number_stored, capacity = redis.call('SCARD', call.storage), tonumber(ARGV[2])

---- Effects, as in decide.lua.

-- Puts books back: into automated storage while it has room, in the order given, the rest in one
-- hand-off to shelving.
local function put_back(list)
  local stored, state, changed, rest = call.stored, call.state, call.changed, {}
  for _, book in ipairs(list) do
    if stored[book] then
      -- Lent and there as well: somebody else left it so.
      state[book], changed[book] = false, true
    elseif number_stored + call.stored_more < capacity then
      call.stored_more = call.stored_more + 1
      stored[book], call.moved[book] = true, true
      state[book], changed[book] = false, true
    else
      rest[#rest + 1] = book
    end
  end
  if #rest > 0 then
    local id = redis.call('XADD', call.handoffs, '*', 'book_ids', table.concat(rest, ','))
    call.undone[id] = true
    call.shelving_at, call.doubt = nil, nil
    for _, book in ipairs(rest) do
      state[book], changed[book] = '>' .. id, true
    end
  end
end

-- Takes back books that are lent to the user of e.
local function take_back(e, mine)
  for _, book in ipairs(mine) do
    call.loan[book], call.changed[book] = false, true
    if call.awaited and call.awaited[book] then
      call.came_free = call.came_free or {}
      call.came_free[book] = call.awaited[book]
    end
  end
  if #mine == 0 then
    return
  end
  call.in_hand[e.count] = math.max(0, call.in_hand[e.count] - #mine)
  call.changed_users[e.user] = e.count
  local list, gone = {}, {}
  for _, book in ipairs(mine) do
    gone[book] = true
  end
  for _, book in ipairs(call.noted_books(e.user) or {}) do
    if not gone[book] then
      list[#list + 1] = book
    end
  end
  call.books_of[e.user] = #list > 0 and table.concat(list, ',')
  put_back(mine)
end

---- Acts, as in decide.lua.

-- Every book of a return is lent to its user.
local function take_all_back(e)
  if not call.acknowledge(e) then
    return {'STALE'}
  end
  take_back(e, e.books)
  return call.tell_all(e, 'returned')
end

---- Looks, as in decide.lua.

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
    if call.loan[book] == e.user then
      -- Only loans of older requests are meant. A loan without an entry is old.
      local is = call.state[book] or ''
      if is ~= known_state then
        local request = string.match(is, '^=(.*)$')
        known_state = is
        is_old = not request or not split(request) or not is_younger(request, e)
      end
      if is_old then
        list = mine
      end
    elseif call.loan[book] then
      list = others
    end
    list[#list + 1] = book
  end
  if #mine == #e.books then
    return take_all_back
  end
  return call.refusals().look_at_partial_return(e, {mine = mine, others = others, not_lent = not_lent})
end

return {put_back = put_back, take_back = take_back, look_at_return = look_at_return}
end
