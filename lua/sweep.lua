-- sweep.lua: remove states of books that mean nothing any more. After order.lua.
--
-- A hand-off that is done leaves its mark behind, since shelving does not touch what is lending's;
-- so does a loan that the reference application took back. A reservation for a request that is
-- decided is left only where the consumer group was lost in the middle of its work: the book may
-- have been fetched, so shelving puts it (back) on its shelf.
--
-- KEYS  1 the instance's lock   2 book states (hash)   3 loans (hash)   4 hand-offs (stream)
--       5 requests (stream)     6 automated storage (set)
-- ARGV  1 token of the lease    2 group of lending     3 group of shelving
--       then in turn: a book, its state as it was seen
-- Returns {"FENCED"} | {"SWEPT", how many, reservations among them}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
redis.call('HLEN', KEYS[3])
redis.call('SCARD', KEYS[6])

local meaningless, orphans = {}, {}
for at = 4, #ARGV, 2 do
  local book, state = ARGV[at], ARGV[at + 1]
  if redis.call('HGET', KEYS[2], book) == state then
    local kind, id = string.sub(state, 1, 1), string.sub(state, 2)
    local lent = redis.call('HEXISTS', KEYS[3], book) == 1
    if kind == '=' then
      if not lent then
        meaningless[#meaningless + 1] = book
      end
    elseif kind == '>' then
      if lent or not is_undone(KEYS[4], ARGV[3], id) then
        meaningless[#meaningless + 1] = book
      end
    elseif kind == '?' and not is_undone(KEYS[5], ARGV[2], id) then
      if lent or redis.call('SISMEMBER', KEYS[6], book) == 1 then
        meaningless[#meaningless + 1] = book
      else
        orphans[#orphans + 1] = book
      end
    end
  end
end

if #meaningless > 0 then
  redis.call('HDEL', KEYS[2], unpack(meaningless))
end
if #orphans > 0 then
  local handoff = redis.call('XADD', KEYS[4], '*', 'book_ids', table.concat(orphans, ','))
  for _, book in ipairs(orphans) do
    redis.call('HSET', KEYS[2], book, '>' .. handoff)
  end
end
return {'SWEPT', #meaningless + #orphans, #orphans}
