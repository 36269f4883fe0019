-- reserved.lua: what else is known of books that the reference application has reserved for a request, as they
-- all are at one instant. After order.lua and groups.lua.
--
-- For the operator's check. Changes nothing.
--
-- KEYS  1 loans (hash)      2 automated storage (set)   3 book states (hash)
--       4 requests (stream)   5 the reservation (set)
-- ARGV  1 group of lending    2 the reservation's request
--       then books, a few hundred at most
-- Returns {"DECIDED"}  the request is not undecided
--       | {"RESERVED", then for each of the books that is in the reservation: the book, whom it is lent to,
--         "stored", its state if that is the reservation of another undecided request; each "" if
--         it is not so}

local is_undone = groups().is_undone
if not is_undone(KEYS[4], ARGV[1], ARGV[2]) then
  return {'DECIDED'}
end
local reply = {'RESERVED'}
for n = 3, #ARGV do
  local book = ARGV[n]
  if redis.call('SISMEMBER', KEYS[5], book) == 1 then
    local state = redis.call('HGET', KEYS[3], book) or ''
    local other = string.match(state, '^%?(.*)')
    local is_other = other and other ~= ARGV[2] and is_undone(KEYS[4], ARGV[1], other)
    reply[#reply + 1] = book
    reply[#reply + 1] = redis.call('HGET', KEYS[1], book) or ''
    reply[#reply + 1] = redis.call('SISMEMBER', KEYS[2], book) == 1 and 'stored' or ''
    reply[#reply + 1] = is_other and state or ''
  end
end
return reply
