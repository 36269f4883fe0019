-- lone_try.lua: count a try of an event that is tried alone, because it was in hand when
-- instances died.
--
-- Only such tries count, and only those that the process did not survive: what an outage
-- interrupted is taken back (I5).
--
-- KEYS  1 the instance's lock    2 lone tries (hash)
-- ARGV  1 token of the lease     2 the event   3 what to add: 1 before the try, -1 after one that
--       was interrupted, 0 when it came to its end
-- Returns {"FENCED"} | {"TRIES", how many now}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
if ARGV[3] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[2])
  return {'TRIES', 0}
end
local tries = redis.call('HINCRBY', KEYS[2], ARGV[2], ARGV[3])
if tries <= 0 then
  redis.call('HDEL', KEYS[2], ARGV[2])
end
return {'TRIES', tries}
