-- forget.lua: remove the consumer of an instance that is long gone, and shelving's last answer to it.
--
-- Deleting a consumer that has pending entries loses them, so looking and deleting are one step.
--
-- KEYS  1 the instance's lock   2 the stream   3 the other instance's lock
--       4 answers of ShelvingService (hash)
-- ARGV  1 token of the lease    2 group        3 the other consumer
-- Returns {"FENCED"} | {"FORGOTTEN"} | {"KEPT"}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
if redis.call('EXISTS', KEYS[3]) == 1
  or #redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then
  return {'KEPT'}
end
redis.call('HDEL', KEYS[4], ARGV[3])
redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3])
return {'FORGOTTEN'}
