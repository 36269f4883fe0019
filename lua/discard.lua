-- discard.lua: move a hand-off that cannot be done to the dead letters.
-- After letters.lua.
--
-- A well-formed one is never given up (library-lending(7), Dead letters). What is in this one is no list
-- of books, so that nothing is to be put on a shelf.
--
-- KEYS  1 the instance's lock   2 hand-offs (stream)     3 dead letters (stream)
-- ARGV  1 token of the lease    2 group of shelving      3 "keep" or "delete" events that are done
--       4 channel of the bell   5 consumer of this instance
--       6 its id                7 the cause
-- Returns {"FENCED"} | {"DISCARDED"} | {"STALE"} (somebody else has done it)
--
-- Whether it is pending still is looked up before anything of it is written.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
-- A wrong type must show before the first write.
redis.call('XLEN', KEYS[3])

local fields, deliveries = look_up(KEYS[2], ARGV[2], ARGV[6])
if not fields then
  return {'STALE'}
end
redis.call('XACK', KEYS[2], ARGV[2], ARGV[6])
write_letters(KEYS[3], KEYS[2], ARGV[6], ARGV[7], deliveries, fields)
if ARGV[3] ~= 'keep' then
  redis.call('XDEL', KEYS[2], ARGV[6])
end
-- Requests may wait for it in other instances. Who is not permitted to ring works on.
redis.pcall('PUBLISH', ARGV[4], ARGV[5])
return {'DISCARDED'}
