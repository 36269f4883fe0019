-- groups.lua: finding a consumer group, and what it has still to do. Not a script of its own: it is
-- put in front of those that say so in their header, behind order.lua.
--
-- The whole file is one function, since decide.lua needs it in few of its calls. The functions in it
-- are not indented for that.

local function groups()

-- What XINFO GROUPS tells of a group, as a table by name, and how many groups the stream has; nil if
-- there is no such group. Raises no error, so that it can be called between writes.
local function group_of(stream, group)
  local all = redis.pcall('XINFO', 'GROUPS', stream)
  for n = 1, all.err and 0 or #all do
    local info = {}
    for at = 1, #all[n], 2 do
      info[all[n][at]] = all[n][at + 1]
    end
    if info.name == group then
      return info, #all
    end
  end
end

-- Whether a text is an id. Redis refuses what is larger than any.
local function is_id(text)
  local ms, seq = split(text)
  return ms ~= nil and not smaller(LARGEST, ms) and not smaller(LARGEST, seq)
end

local delivered_known, undone_known_of = {}, {}
-- Whether an entry of a stream is waiting for its group, or in work. What is no id names no entry.
-- For scripts that acknowledge and delete nothing in the stream before they ask.
local function is_undone(stream, group, id)
  local at = stream .. ' ' .. id
  if undone_known_of[at] == nil then
    if not delivered_known[stream] then
      local info = group_of(stream, group)
      delivered_known[stream] = info and info['last-delivered-id'] or '0-0'
    end
    if not is_id(id) then
      undone_known_of[at] = false
    elseif before(delivered_known[stream], id) then
      undone_known_of[at] = #redis.call('XRANGE', stream, id, id) > 0
    else
      local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
      -- An error means that there is no group, and the id is 0-0.
      undone_known_of[at] = not pending.err and #pending > 0
    end
  end
  return undone_known_of[at]
end

-- No more hand-offs than this are looked through for a book.
local MOST_HANDOFFS = 1000

-- For each book that is in hand-offs, the ids of those.
local function handoffs_by_book(entries)
  local ids = {}
  for _, entry in ipairs(entries) do
    for n = 1, #entry[2], 2 do
      local list = entry[2][n] == 'book_ids' and entry[2][n + 1] or ''
      for book in string.gmatch(list, '[^,]+') do
        ids[book] = ids[book] or {}
        table.insert(ids[book], entry[1])
      end
    end
  end
  return ids
end

local in_handoffs, too_many_handoffs
-- Whether a book is in a hand-off that is still to be done, whoever made it: those of the reference
-- application leave no mark in the states of books. nil if there are too many to look through. For
-- scripts that add no hand-off before they ask; decide.lua does, and refusals.lua has one for it.
local function is_in_handoff(stream, group, book)
  if not in_handoffs then
    local info = group_of(stream, group)
    local oldest = info and redis.call('XPENDING', stream, group, '-', '+', 1)[1]
    local from = oldest and oldest[1] or info and info['last-delivered-id'] or '-'
    local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', MOST_HANDOFFS)
    in_handoffs, too_many_handoffs = handoffs_by_book(entries), #entries == MOST_HANDOFFS
  end
  for _, id in ipairs(in_handoffs[book] or {}) do
    if is_undone(stream, group, id) then
      return true
    end
  end
  if too_many_handoffs then
    return nil
  end
  return false
end

-- Of one consumer no more entries than these are looked at; a reference instance works on one at a time.
local MOST_RESERVATIONS = 1000
-- The books that these consumers have reserved for the requests that they work on, if they run the reference
-- application. They tell nobody, and take them out of automated storage, whoever had fetched them before.
-- Their keys are named like `temp`, that of the request with this id. nil if there are too many to look
-- through.
local function reserved_by(stream, group, consumers, temp, id)
  local beginning = string.sub(temp, 1, #temp - #id - #':temp')
  local reserved = {}
  for _, name in ipairs(consumers) do
    local pending = redis.pcall('XPENDING', stream, group, '-', '+', MOST_RESERVATIONS, name)
    if pending.err or #pending == MOST_RESERVATIONS then
      return nil
    end
    for _, entry in ipairs(pending) do
      local books = redis.pcall('SMEMBERS', beginning .. entry[1] .. ':temp')
      if books.err then
        return nil
      end
      for _, book in ipairs(books) do
        reserved[book] = true
      end
    end
  end
  return reserved
end

return {
  group_of = group_of, is_id = is_id, is_undone = is_undone, is_in_handoff = is_in_handoff,
  handoffs_by_book = handoffs_by_book, MOST_HANDOFFS = MOST_HANDOFFS, reserved_by = reserved_by,
}
end
