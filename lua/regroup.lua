-- regroup.lua: create a consumer group that was lost, over events of which some are decided.
--
-- One step, so that no event is ever taken for decided that is not: the group begins behind the
-- last decided event, and the undecided ones before that are pending for a consumer that is not
-- there, from which the instances take them over.
--
-- KEYS  1 the stream
-- ARGV  1 group   2 the id after which it begins   3 the consumer that is not there
--       then ids of undecided events up to that id
-- Returns {"REGROUPED", how many of these are pending now} | {"EXISTS"}

local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2])
if created.err then
  if string.find(created.err, 'BUSYGROUP', 1, true) then
    return {'EXISTS'}
  end
  return created
end
-- Lua's stack bounds the arguments of one call.
local SLICE = 1000
local pending = 0
for first = 4, #ARGV, SLICE do
  local ids = {unpack(ARGV, first, math.min(first + SLICE - 1, #ARGV))}
  ids[#ids + 1] = 'FORCE'
  ids[#ids + 1] = 'JUSTID'
  -- JUSTID: this delivery does not count.
  pending = pending + #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(ids))
end
return {'REGROUPED', pending}
