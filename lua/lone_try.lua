-- lone_try.lua: count a try of an event that is tried alone, because it was in hand when
-- instances died.
--
-- Only such tries count, and only those that the process did not survive: what an outage
-- interrupted is taken back (I5). Beside the number stands who tries, so that each step can be
-- made again when its reply was lost: whoever begins once more has survived the time before.
--
-- KEYS  1 the instance's lock    2 lone tries (hash: event -> number, or number and process)
-- ARGV  1 token of the lease     2 the event   3 "begin" before the try, "interrupted" after one
--       that did not come to its end, "ended" after one that did
-- Returns {"FENCED"} | {"TRIES", how many now}

local tries_key, event, step = KEYS[2], ARGV[2], ARGV[3]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local process = string.match(ARGV[1], '^(.*):')
local tries, by = string.match(redis.call('HGET', tries_key, event) or '0', '^(%d+) ?(.*)$')
tries = tonumber(tries)

if step == 'begin' then
  if by ~= process then
    tries = tries + 1
  end
  redis.call('HSET', tries_key, event, tries .. ' ' .. process)
elseif step == 'interrupted' and by == process and tries > 1 then
  tries = tries - 1
  redis.call('HSET', tries_key, event, tries)
elseif step == 'ended' or by == process then
  tries = 0
  redis.call('HDEL', tries_key, event)
end
return {'TRIES', tries}
