-- inspect.lua: hold books against the invariants, as they all are at one instant.
-- After order.lua and groups.lua.
--
-- For the operator's check, which may look at what both services own. Changes nothing.
-- A fault of a book is told only where the book was found in the place that the fault is named
-- after, so that scanning all places tells it once.
--
-- KEYS  1 loans (hash)          2 automated storage (set)   3 main storage (hash)
--       4 book states (hash)    5 requests (stream)         6 hand-offs (stream)
-- ARGV  1 group of lending      2 group of shelving
--       3 where the books were found: "loans", "storage", "shelves" or "states"
--       then the books, a few hundred at most
-- Returns {"INSPECTED", then for each book that something is wrong with: the book, the fault,
--         whom it is lent to, its entry in main storage, its state; each "" if there is none}
--       the faults:
--         "lent_and_stored"   in two places at once
--         "lent_on_shelf"     lent, and without an entry in main storage
--         "stored_on_shelf"   in automated storage, and without an entry in main storage
--         "nowhere"           out of main storage, and none of: lent, stored, reserved by an
--                             undecided request, on its way to its shelf in a hand-off that its
--                             state names. Hand-offs and reservations of the reference
--                             application carry no state: the caller looks for those.
--         "lent_and_reserved", "stored_and_reserved"  in its place, and reserved by an undecided
--                             request
--         "reserved_for_none" reserved by a request that is decided
--         "state_unknown"     a state that means nothing

local groups = groups()
local is_id, is_undone = groups.is_id, groups.is_undone
local place = ARGV[3]
local books = {unpack(ARGV, 4)}
local reply = {'INSPECTED'}
if #books == 0 then
  return reply
end

local lent = redis.call('HMGET', KEYS[1], unpack(books))
local stored = redis.call('SMISMEMBER', KEYS[2], unpack(books))
local out = redis.call('HMGET', KEYS[3], unpack(books))
local states = redis.call('HMGET', KEYS[4], unpack(books))

local function fault_of(n)
  local kind, id
  if states[n] then
    kind, id = string.sub(states[n], 1, 1), string.sub(states[n], 2)
  end
  if place == 'loans' and lent[n] then
    if stored[n] == 1 then
      return 'lent_and_stored'
    end
    return not out[n] and 'lent_on_shelf'
  elseif place == 'storage' and stored[n] == 1 and not lent[n] then
    return not out[n] and 'stored_on_shelf'
  elseif place == 'shelves' and out[n] and not lent[n] and stored[n] == 0 then
    -- With a reservation it is told as such, if anything is wrong with it.
    local explained = kind == '?'
      or kind == '>' and is_undone(KEYS[6], ARGV[2], id)
      or is_undone(KEYS[5], ARGV[1], out[n])
    return not explained and 'nowhere'
  elseif place == 'states' and kind then
    if kind == '?' then
      return not is_undone(KEYS[5], ARGV[1], id) and 'reserved_for_none'
        or lent[n] and 'lent_and_reserved' or stored[n] == 1 and 'stored_and_reserved'
    end
    return not ((kind == '=' or kind == '>') and is_id(id)) and 'state_unknown'
  end
end

for n, book in ipairs(books) do
  local fault = fault_of(n)
  if fault then
    for _, part in ipairs({book, fault, lent[n] or '', out[n] or '', states[n] or ''}) do
      reply[#reply + 1] = part
    end
  end
end
return reply
