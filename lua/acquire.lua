-- acquire.lua: take or take again the lease of an instance's name, with a new token.
--
-- A token is used for one session of connections only, so that a command still under way on a
-- connection that was given up finds another token and changes nothing (I7). Tokens of one
-- process are its own name, a colon and a number that grows.
--
-- KEYS  1 the instance's lock
-- ARGV  1 process   2 number of the token   3 lease in milliseconds
--       4 "force" to take it from whoever has it, else ""
-- Returns {"ACQUIRED", "free" or "forced"} | {"HELD", value, milliseconds left or -1 without a TTL}

local held = redis.call('GET', KEYS[1])
local free = not held
if held then
  -- A token of an earlier session of this process; a later one means that this call comes late.
  local number = string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':'
    and tonumber(string.sub(held, #ARGV[1] + 2))
  free = number and number < tonumber(ARGV[2])
end
if not free and ARGV[4] ~= 'force' then
  return {'HELD', held, redis.call('PTTL', KEYS[1])}
end
local token = ARGV[1] .. ':' .. ARGV[2]
local set = redis.pcall('SET', KEYS[1], token, 'PX', ARGV[3])
if set.err then
  if not string.find(set.err, 'OOM', 1, true) then
    return set
  end
  -- A Redis whose memory is full refuses a script's first write if that may need more, and no other. To
  -- return books is what makes room in it: the lease has to be had.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], token, 'PX', ARGV[3])
end
return {'ACQUIRED', free and 'free' or 'forced'}
