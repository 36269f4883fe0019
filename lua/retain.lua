-- retain.lua: drop the outcomes that are older than they are to be kept.
--
-- In steps, since there may be millions: as many at once as XTRIM takes by itself where it may take
-- whole pieces of the stream only, and the last few one by one.
--
-- KEYS  1 the instance's lock   2 outcomes (stream)
-- ARGV  1 token of the lease    2 the id before which they go
-- Returns {"FENCED"} | {"DROPPED", how many, "more" or "done"}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local dropped = redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[2])
if dropped > 0 then
  return {'DROPPED', dropped, 'more'}
end
return {'DROPPED', redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[2]), 'done'}
