-- guard.lua: make the transaction that follows fail where its chunk must not be added.
--
-- KEYS  1 requests (stream)  2 returns (stream)  3 the submission (string), which the caller
--       watches
-- Returns {"NEW"}: the transaction may go on
--     | {"KNOWN", what submit.lua kept}: the chunk was added before
--     | {"WRONG_TYPE", key}: a stream's key holds something else
--     | {"NO_IDS_LEFT"}: a stream has reached the end of all ids
--
-- A transaction fails if a watched key was changed after WATCH, also by the same client. So but
-- for NEW the submission is changed in a way that nobody else can tell.

local submission = KEYS[3]
local kept = redis.call('GET', submission)
if kept then
  redis.call('SET', submission, kept, 'KEEPTTL')
  return {'KNOWN', kept}
end

local verdict = {'NEW'}
for n = 1, 2 do
  local kind = redis.call('TYPE', KEYS[n]).ok
  if kind == 'stream' then
    local info = redis.call('XINFO', 'STREAM', KEYS[n])
    for field = 1, #info, 2 do
      if info[field] == 'last-generated-id'
        and string.find(info[field + 1], '^18446744073709551615-') then
        verdict = {'NO_IDS_LEFT'}
      end
    end
  elseif kind ~= 'none' then
    verdict = {'WRONG_TYPE', KEYS[n]}
  end
end
if verdict[1] ~= 'NEW' then
  redis.call('SET', submission, '', 'PX', 1)
end
return verdict
