-- lone_try.lua: note which events are being tried that were in hand when instances died.
--
-- They are tried together at first, apart from all others; those that were being tried when a
-- process died after all are tried alone. Only tries alone count, and only those that the process
-- did not survive: what an outage interrupted, or ended in waiting, is taken back (I5). Beside the
-- number stands who tries, so that each step can be made again when its reply was lost: whoever
-- begins once more has survived the time before.
--
-- KEYS  1 the instance's lock    2 lone tries (hash: event -> number, or number and process)
-- ARGV  1 token of the lease     2 "together" or "alone" before a try; "survived" after one that
--       did not decide the event, "ended" after one that did     3.. the events
-- Returns {"FENCED"} | {"TRIES", how many alone, of the last event}

local tries_key, step = KEYS[2], ARGV[2]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local process = string.match(ARGV[1], '^(.*):')
local tries = 0
for n = 3, #ARGV do
  local event = ARGV[n]
  local noted = redis.call('HGET', tries_key, event) or '0'
  local count, by = string.match(noted, '^(%d+) ?(.*)$')
  tries = tonumber(count)
  if step == 'together' or step == 'alone' then
    if step == 'alone' and (by ~= process or tries == 0) then
      tries = tries + 1
    end
    redis.call('HSET', tries_key, event, tries .. ' ' .. process)
  elseif step == 'survived' and by == process and tries > 1 then
    tries = tries - 1
    redis.call('HSET', tries_key, event, tries)
  elseif step == 'ended' or by == process then
    tries = 0
    redis.call('HDEL', tries_key, event)
  end
end
return {'TRIES', tries}
