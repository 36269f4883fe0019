-- claim.lua: take over events that an instance has in hand and cannot finish. After order.lua.
--
-- They are claimed only from an instance whose lock is gone, checked here, in the same step: a
-- lock that comes back later finds its events elsewhere. A lock without a TTL was left by the
-- reference application and counts as alive until nothing was heard of it for very long. An
-- instance that starts again claims from itself, so that the deliveries count what was in hand
-- when a process died.
--
-- KEYS  1 the instance's lock    2 the stream       3 the other instance's lock
-- ARGV  1 token of the lease     2 group            3 consumer of this instance
--       4 the other consumer     5 most events      6 last id seen, or "-"
--       7 deliveries from which on an event is suspected of killing who reads it: of those only
--         the id is told
--       8 milliseconds that a consumer whose lock has no TTL must have been idle
-- Returns {"FENCED"} | {"ALIVE"} | {"CLAIMED", last id seen or "" at the end,
--         then for each event: its id, its fields (a list; empty if it was deleted) or "suspected"}

local stream, group, me, from = KEYS[2], ARGV[2], ARGV[3], ARGV[4]

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local min_idle = '0'
if from ~= me then
  local left = redis.call('PTTL', KEYS[3])
  if left >= 0 then
    return {'ALIVE'}
  elseif left == -1 then
    min_idle = ARGV[8]
  end
end

local start = ARGV[6] == '-' and '-' or '(' .. ARGV[6]
local pending = redis.call('XPENDING', stream, group, start, '+', ARGV[5], from)
local last = #pending == tonumber(ARGV[5]) and pending[#pending][1] or ''
-- Nothing comes behind the last id of all.
local reply = {'CLAIMED', last == LAST_OF_ALL and '' or last}
for _, entry in ipairs(pending) do
  -- Somebody may have set it to more than Lua can count.
  local id, deliveries = entry[1], math.min(entry[4] + 1, 1000000000)
  local found = redis.call('XRANGE', stream, id, id)[1]
  local claimed = true
  if found then
    -- JUSTID does not count; RETRYCOUNT does.
    claimed = #redis.call('XCLAIM', stream, group, me, min_idle, id, 'RETRYCOUNT', deliveries,
      'JUSTID') > 0
  end
  -- An entry that was deleted is not claimed: Redis 7 would drop it, and it would end without an
  -- outcome. It is told without fields, to be rejected where it is.
  if claimed then
    reply[#reply + 1] = id
    reply[#reply + 1] = found and deliveries >= tonumber(ARGV[7]) and 'suspected'
      or found and found[2] or {}
  end
end
return reply
