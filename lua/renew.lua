-- renew.lua: prolong the lease.
--
-- KEYS  1 the instance's lock
-- ARGV  1 token of the lease   2 lease in milliseconds
-- Returns {"FENCED"} | {"RENEWED"}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'RENEWED'}
