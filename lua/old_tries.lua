-- old_tries.lua: remove the notes of tries of events that are decided.
-- After order.lua and groups.lua.
--
-- An instance that dies between a decision and taking the note of the try away leaves it behind.
--
-- KEYS  1 the instance's lock    2 lone tries (hash)   3 requests (stream)   4 returns (stream)
-- ARGV  1 token of the lease     2 group of lending
--       then in turn: an event as it is noted, "request" or "return", its id
-- Returns {"FENCED"} | {"REMOVED", how many}

local group_of = groups().group_of
local tries, requests, returns = KEYS[2], KEYS[3], KEYS[4]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local removed = 0
local group_at = {[requests] = group_of(requests, ARGV[2]), [returns] = group_of(returns, ARGV[2])}
for at = 3, #ARGV, 3 do
  local stream, id = ARGV[at + 1] == 'request' and requests or returns, ARGV[at + 2]
  local group = group_at[stream]
  -- Without a group nothing is known: it will be there again soon.
  if group and not before(group['last-delivered-id'], id)
    and #redis.call('XPENDING', stream, ARGV[2], id, id, 1) == 0 then
    removed = removed + redis.call('HDEL', tries, ARGV[at])
  end
end
return {'REMOVED', removed}
