-- clear.lua: delete events that are decided and still in their stream.
-- After order.lua, groups.lua and last_given.lua.
--
-- Instances of the reference application acknowledge and leave them. Where another consumer group
-- reads the stream, nothing is deleted. While decided events are in a stream, or such an instance may leave
-- one at any time, a note of it is kept: should the consumer group be lost, it must not be recreated at 0.
--
-- What was delivered and is not pending is taken for decided. Where somebody has set the group to an id that
-- the stream has not given yet, that is wrong: what is added up to there is never delivered, and nothing but
-- the ids tells it from what is decided. So nothing is deleted then, and an error ends the session,
-- whether events are kept or not; the next one finds the same at its start, and says what to do.
--
-- KEYS  1 the instance's lock   2 the stream   3 notes of kept events (hash)
-- ARGV  1 token of the lease    2 group        3 most events to look at   4 "keep" or "delete"
--       5 "reference" if an instance of the reference application may be running, else "none"
-- Returns {"FENCED"} | {"CLEARED", how many, "more" or "done"} | an error that begins with AHEAD

local group_of = groups().group_of
local stream, group, most = KEYS[2], ARGV[2], tonumber(ARGV[3])

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end

-- A Redis whose memory is full refuses a script's first write if that may need more, and no other.
local function note(why)
  redis.call('HDEL', KEYS[3], stream)
  redis.call('HSET', KEYS[3], stream, why)
end

-- A wrong type must show before the first write.
redis.call('HLEN', KEYS[3])
local ours, number_of_groups = group_of(stream, group)
if not ours then
  return {'CLEARED', 0, 'done'}
end

-- What was delivered before the oldest undecided event is decided. What is behind that one is not read: each id comes
-- with its whole entry, of megabytes perhaps.
local delivered = ours['last-delivered-id']
local oldest = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
local last = delivered
if oldest and before(oldest[1], delivered) then
  last = oldest[1]
end
local decided = {}
for _, entry in ipairs(redis.call('XRANGE', stream, '-', last, 'COUNT', most)) do
  if not oldest or entry[1] ~= oldest[1] then
    decided[#decided + 1] = entry[1]
  end
end

-- Only where something seems to be decided: whole entries come with it.
if #decided > 0 and before(last_given(redis.call('XINFO', 'STREAM', stream)), delivered) then
  return redis.error_reply('AHEAD the group ' .. group .. ' is ahead of ' .. stream)
end
if ARGV[4] == 'keep' or number_of_groups > 1 then
  -- Also where none is left: an instance that deletes them has taken the note away, and more will be kept.
  if #decided > 0 or ARGV[4] == 'keep' then
    note('decided events are kept')
  end
  return {'CLEARED', 0, 'done'}
end
if #decided > 0 then
  redis.call('XDEL', stream, unpack(decided))
end
if #decided == most then
  note('decided events are being cleared')
  return {'CLEARED', #decided, 'more'}
end
if ARGV[5] == 'reference' then
  note('the reference application leaves decided events')
else
  redis.call('HDEL', KEYS[3], stream)
end
return {'CLEARED', #decided, 'done'}
