-- mend.lua: give books that are nowhere, or reserved for nobody, back to the shelves.
-- After order.lua and groups.lua.
--
-- For the operator's check, beside running instances: every book is looked at again in this step,
-- and left alone unless it is as the check has seen it. Main storage is shelving's: the books go
-- there in a hand-off. A book is handed over only while it is out for a request that is decided:
-- so long nobody else can get it, until this hand-off has brought it to its shelf. Marked as on its
-- way, it is waited for.
--
-- KEYS  1 loans (hash)          2 automated storage (set)   3 main storage (hash)
--       4 book states (hash)    5 requests (stream)         6 hand-offs (stream)
--       7 the reservation to be dissolved (set), if the books come from one
-- ARGV  1 group of lending      2 group of shelving
--       3 the request of that reservation, or ""
--       then in turn, of a few hundred books at most: the book, its entry in main storage as it
--       was seen, its state as it was seen; "" for none; with KEYS[7] these two do not matter
-- Returns {"CHANGED"}  the reservation's request is undecided
--       | {"MENDED", id of the hand-off or "", then for each book: "handed_over", "let_go" (only
--         the reservation was taken away: the book has its place, or is told by its state) or
--         "changed"}

local is_undone = groups().is_undone
local left = KEYS[7]
redis.call('HLEN', KEYS[1])
redis.call('SCARD', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('HLEN', KEYS[4])
redis.call('XLEN', KEYS[6])
if left then
  redis.call('SCARD', left)
  if is_undone(KEYS[5], ARGV[1], ARGV[3]) then
    return {'CHANGED'}
  end
end

local function what_to_do(book, seen_out, seen_state)
  local out = redis.call('HGET', KEYS[3], book) or ''
  local state = redis.call('HGET', KEYS[4], book) or ''
  local kind, id = string.sub(state, 1, 1), string.sub(state, 2)
  if left then
    if redis.call('SISMEMBER', left, book) == 0 then
      return 'changed'
    end
  elseif out ~= seen_out or state ~= seen_state then
    return 'changed'
  end
  if (kind == '?' and (left or is_undone(KEYS[5], ARGV[1], id)))
    or (kind == '>' and is_undone(KEYS[6], ARGV[2], id))
    or is_undone(KEYS[5], ARGV[1], out) then
    -- Somebody is at it, or it is told by its state.
    return left and 'let_go' or 'changed'
  elseif redis.call('HEXISTS', KEYS[1], book) == 1
    or redis.call('SISMEMBER', KEYS[2], book) == 1
    or out == '' then
    -- It has its place. On its shelf, above all, it must be in no hand-off: it can be fetched and
    -- lent before that is done.
    return (left or kind == '?') and 'let_go' or 'changed'
  end
  return 'handed_over'
end

local reply, to_shelves = {'MENDED', ''}, {}
for at = 4, #ARGV, 3 do
  local word = what_to_do(ARGV[at], ARGV[at + 1], ARGV[at + 2])
  reply[#reply + 1] = word
  if word == 'handed_over' then
    to_shelves[#to_shelves + 1] = ARGV[at]
  end
end

if #to_shelves > 0 then
  reply[2] = redis.call('XADD', KEYS[6], '*', 'book_ids', table.concat(to_shelves, ','))
end
for at = 4, #ARGV, 3 do
  local book, word = ARGV[at], reply[2 + (at - 1) / 3]
  if word == 'handed_over' then
    redis.call('HSET', KEYS[4], book, '>' .. reply[2])
  elseif word == 'let_go' and not left then
    redis.call('HDEL', KEYS[4], book)
  end
  if left and word ~= 'changed' then
    redis.call('SREM', left, book)
  end
end
return reply
