-- resign.lua: give up the lease at the end, and with it shelving's last answer to this instance and
-- the consumers that have nothing pending.
--
-- Deleting a consumer that has pending entries would lose them: those stay, to be claimed.
--
-- KEYS  1 the instance's lock   2 answers of ShelvingService (hash)   3.. streams
-- ARGV  1 token of the lease    2 consumer   3.. the group on each stream
-- Returns {"FENCED"} | {"RESIGNED", pending entries left behind}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local left = 0
for n = 3, #KEYS do
  local group = ARGV[n]
  local pending = redis.pcall('XPENDING', KEYS[n], group, '-', '+', 1000, ARGV[2])
  if not pending.err then
    left = left + #pending
    if #pending == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[n], group, ARGV[2])
    end
  end
end
redis.pcall('HDEL', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[1])
return {'RESIGNED', left}
