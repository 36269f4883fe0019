-- sweep.lua: remove states of books that mean nothing any more.
-- After order.lua and groups.lua.
--
-- A hand-off that is done leaves its mark behind, since shelving does not touch what is lending's;
-- so does a loan that the reference application took back. A reservation for a request that is
-- decided is left only where the consumer group was lost in the middle of its work. The book may
-- have been fetched: it is told, so that shelving can take it back (unfetch.lua), and swept in a
-- second call. Not where the reference application, which takes no notice of reservations, has lent
-- or stored the book since (I1); nor, until that is done, where it has handed it to shelving.
--
-- KEYS  1 the instance's lock   2 book states (hash)   3 loans (hash)   4 hand-offs (stream)
--       5 requests (stream)         6 automated storage (set)
-- ARGV  1 token of the lease    2 group of lending     3 group of shelving
--       4 "look" or "unfetched": whether reservations may be swept
--       then in turn: a book, its state as it was seen
-- Returns {"FENCED"} | {"SWEPT", how many, then in turn: a book that is reserved for a decided
--       request, its state}

local groups = groups()
local is_in_handoff, is_undone = groups.is_in_handoff, groups.is_undone
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
redis.call('HLEN', KEYS[3])
redis.call('SCARD', KEYS[6])

local meaningless, orphans = {}, {}
for at = 5, #ARGV, 2 do
  local book, state = ARGV[at], ARGV[at + 1]
  if redis.call('HGET', KEYS[2], book) == state then
    local kind, id = string.sub(state, 1, 1), string.sub(state, 2)
    local lent = redis.call('HEXISTS', KEYS[3], book) == 1
    local over = false
    if kind == '=' then
      over = not lent
    elseif kind == '>' then
      over = lent or not is_undone(KEYS[4], ARGV[3], id)
    elseif kind == '?' and not is_undone(KEYS[5], ARGV[2], id) then
      local stored = redis.call('SISMEMBER', KEYS[6], book) == 1
      over = lent or stored or ARGV[4] == 'unfetched'
      if not over and is_in_handoff(KEYS[4], ARGV[3], book) == false then
        orphans[#orphans + 1] = book
        orphans[#orphans + 1] = state
      end
    end
    if over then
      meaningless[#meaningless + 1] = book
    end
  end
end

if #meaningless > 0 then
  redis.call('HDEL', KEYS[2], unpack(meaningless))
end
return {'SWEPT', #meaningless, unpack(orphans)}
