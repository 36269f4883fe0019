-- lone_try.lua: note which events are being tried that were in hand when instances died.
--
-- They are tried in groups at first, apart from all others; those that were in a group when a
-- process died after all, in smaller groups, and in the end alone. Only tries that the process did
-- not survive count: what an outage interrupted, or ended in waiting, is taken back (I5). Beside
-- the numbers stands who tries, so that each step can be made again when its reply was lost:
-- whoever begins once more has survived the time before. (Who was cut off in a try for longer than
-- its lease, so that another has begun one since, counts as dead: there is one name in a note.)
--
-- KEYS  1 the instance's lock    2 lone tries (hash: event -> tries in groups and alone, and while
--       one is under way "group" or "alone" and the process)
-- ARGV  1 token of the lease     2 "group" or "alone" before a try; "survived" after one that did
--       not decide the events, "ended" after one that did    3.. the events
-- Returns {"FENCED"} | {"TRIES", how many alone, of the last event}

local tries_key, step = KEYS[2], ARGV[2]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
-- A Redis whose memory is full refuses a script's first write if that may need more, and no other.
local function note(event, text)
  redis.call('HDEL', tries_key, event)
  redis.call('HSET', tries_key, event, text)
end

local process = string.match(ARGV[1], '^(.*):')
local tries
for n = 3, #ARGV do
  local event = ARGV[n]
  local noted = redis.call('HGET', tries_key, event) or ''
  local group, alone, under_way, by = string.match(noted, '^(%d+) (%d+) ?(%a*) ?(.*)$')
  tries = {group = tonumber(group or 0), alone = tonumber(alone or 0)}
  if by == process then
    tries[under_way] = tries[under_way] - 1
  end
  if step == 'ended' or (step == 'survived' and tries.group + tries.alone == 0) then
    redis.call('HDEL', tries_key, event)
  elseif step == 'survived' then
    -- Where somebody else has taken the event over, the note is of a try of theirs.
    if by == process then
      note(event, tries.group .. ' ' .. tries.alone)
    end
  else
    tries[step] = tries[step] + 1
    note(event, table.concat({tries.group, tries.alone, step, process}, ' '))
  end
end
return {'TRIES', tries.alone}
