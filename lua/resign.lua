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
  local pending = redis.pcall('XPENDING', KEYS[n], group)
  if not pending.err then
    local number = 0
    -- Nothing stands there where nobody has anything.
    for _, of_one in ipairs(pending[4] or {}) do
      number = of_one[1] == ARGV[2] and tonumber(of_one[2]) or number
    end
    left = left + number
    if number == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[n], group, ARGV[2])
    end
  end
end
redis.pcall('HDEL', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[1])
return {'RESIGNED', left}
