-- submit.lua: add a chunk of requests and returns to their streams, all at once and in their
-- order, under ids that grow across both streams. A chunk that has a name is added once. After
-- order.lua and last_given.lua.
--
-- KEYS  1 requests (stream)  2 returns (stream)
--       3 the submission (string; only for a chunk that has a name)
--       4 that of the chunk before it (string; only for one of several, not for the first)
-- ARGV  1 how long the submission is kept, in ms  2 the chunk's fingerprint (both unused
--       without KEYS 3), then four for each event: action, user id, book ids, wish for an
--       answer ('' for none)
-- Returns {"ADDED", id of the first event}: the next one's sequence number is greater by a
--       million, whatever its stream, and so on
--     | {"KNOWN", what was kept: action, ":", id of the first event, " ", fingerprint}
--     | {"OUT_OF_TURN"}: the chunk before it is not there, nothing was added
--     | {"WRONG_TYPE", key}: a stream's key holds something else, nothing was added
--     | {"NO_IDS_LEFT"}: a stream has reached the end of all ids, nothing was added
--
-- The smaller id is the older event, also across the two streams (library-lending(7), Order): XADD with
-- `*` counts for each stream alone, so the ids are given here. The clock is read here because it
-- is the one that XADD reads. Everything is read and checked before the first write.

local requests, returns, submission, submission_before = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl_ms, fingerprint = ARGV[1], ARGV[2]
local FIRST_EVENT, PER_EVENT = 3, 4

if submission then
  local kept = redis.call('GET', submission)
  -- An empty one is on its way out: see below, and gate.lua.
  if kept and kept ~= '' then
    return {'KNOWN', kept}
  end
end
-- Chunks are sent before the replies to others are read: where one fails, those behind it must too.
if submission_before and #(redis.call('GET', submission_before) or '') == 0 then
  return {'OUT_OF_TURN'}
end

-- The sequence numbers are multiples of a million, so that who reads an id can tell that it may be
-- compared with those of the other stream: one that XADD gives follows the last and is none.
local STEP = 1000000

-- Ids are pairs of unsigned 64-bit numbers, doubles are exact up to 2^53 only: milliseconds stay
-- decimal strings, and after a sequence number of more than 14 digits the next millisecond begins.
local function plus_one(digits)
  local nines = string.match(digits, '9*$')
  local head = string.sub(digits, 1, #digits - #nines)
  local zeros = string.rep('0', #nines)
  if head == '' then
    return '1' .. zeros
  end
  return string.sub(head, 1, -2) .. string.format('%d', string.sub(head, -1) + 1) .. zeros
end

local time = redis.call('TIME')
local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local seq = STEP

for _, stream in ipairs({requests, returns}) do
  local kind = redis.call('TYPE', stream).ok
  if kind == 'stream' then
    local last_ms, last_seq = split(last_given(redis.call('XINFO', 'STREAM', stream)))
    local next_seq = STEP
    if #last_seq > 14 then
      last_ms = plus_one(last_ms)
    else
      next_seq = (math.floor(tonumber(last_seq) / STEP) + 1) * STEP
    end
    if smaller(ms, last_ms) then
      ms, seq = last_ms, next_seq
    elseif last_ms == ms and next_seq > seq then
      seq = next_seq
    end
  elseif kind ~= 'none' then
    return {'WRONG_TYPE', stream}
  end
end
if smaller(LARGEST, ms) then
  return {'NO_IDS_LEFT'}
end

local first = ms .. '-' .. string.format('%.0f', seq)
if submission then
  redis.call('SET', submission, ARGV[FIRST_EVENT] .. ':' .. first .. ' ' .. fingerprint,
    'PX', ttl_ms)
end
for n = 0, (#ARGV - FIRST_EVENT + 1) / PER_EVENT - 1 do
  local at = FIRST_EVENT + n * PER_EVENT
  local stream = ARGV[at] == 'request' and requests or returns
  local id = ms .. '-' .. string.format('%.0f', seq + n * STEP)
  local user, books, wish = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local added
  if wish == '' then
    added = redis.pcall('XADD', stream, id, 'user_id', user, 'book_ids', books)
  else
    added = redis.pcall('XADD', stream, id, 'user_id', user, 'book_ids', books, 'answer', wish)
  end
  if type(added) == 'table' and added.err then
    -- Only the very first can fail, for want of the permission to XADD. A submission without its
    -- events would answer for them ever after.
    if submission then
      redis.call('SET', submission, '', 'PX', 1)
    end
    return added
  end
end
return {'ADDED', first}
