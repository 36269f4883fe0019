-- order.lua: comparing stream ids. Not a script of its own: it is put in front of those that say so
-- in their header.

-- Of two decimal numbers without leading zeros, whether a is smaller. Exact to any length, where
-- Lua's own numbers end at 2^53.
local function smaller(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

-- The largest milliseconds, and the largest sequence number.
local LARGEST = '18446744073709551615'

-- The last of all ids. Nothing comes behind it, and Redis refuses to be asked for that.
local LAST_OF_ALL = LARGEST .. '-' .. LARGEST

-- Milliseconds and sequence number of an id, as text.
local function split(id)
  return string.match(id, '^(%d+)%-(%d+)$')
end

-- Whether id a comes before id b.
local function before(a, b)
  local a_ms, a_seq = split(a)
  local b_ms, b_seq = split(b)
  if a_ms ~= b_ms then
    return smaller(a_ms, b_ms)
  end
  return smaller(a_seq, b_seq)
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
