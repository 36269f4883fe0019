-- permits.lua: whether the scripts of the daemon can run every command that is in them.
--
-- Lua has no rollback: a script that finds in the middle that it may not go on has acknowledged
-- events whose outcomes it cannot write any more (I4). So each command is tried before there is
-- anything to lose, in a form that changes nothing: on the lock, which is a string, on a key that is
-- not there, or with one argument too few. The user's permission is looked at before all that. So the
-- lock has to be held: once it has run out, XADD would make a stream of it.
--
-- XREADGROUP is in no script, but whoever may not read is not ready.
--
-- KEYS  1 the instance's lock   2 a key that is not there
-- ARGV  1 token of the lease
-- Returns {"FENCED"} | {"PERMITTED"} | {"DENIED", command} | {"MISSING", command}, which was taken away
--       by `rename-command`

local lock, absent = KEYS[1], KEYS[2]

local function is_denied(reply)
  local err = type(reply) == 'table' and reply.err or ''
  -- The words of Redis 6 and 7.0, and of later ones.
  return string.find(err, "The user executing the script can't", 1, true)
    or string.find(err, 'ACL failure in script', 1, true) or string.find(err, 'NOPERM', 1, true)
end

local function is_missing(reply)
  local err = type(reply) == 'table' and reply.err or ''
  return string.find(err, '[Uu]nknown command') or string.find(err, '[Uu]nknown Redis command')
end

local held = redis.pcall('GET', lock)
if is_denied(held) then
  return {'DENIED', 'GET'}
elseif is_missing(held) then
  return {'MISSING', 'GET'}
end
if held ~= ARGV[1] then
  return {'FENCED'}
end

local harmless = {
  {'XACK', lock, 'group', '0-1'}, {'XADD', lock, '*', 'field', 'value'}, {'XDEL', lock, '0-1'},
  {'XCLAIM', lock, 'group', 'consumer', 0, '0-1'}, {'XTRIM', lock, 'MINID', '0-1'},
  {'XGROUP', 'DELCONSUMER', lock, 'group', 'consumer'}, {'XPENDING', lock, 'group', '-', '+', 1},
  {'XREADGROUP', 'GROUP', 'group', 'consumer', 'STREAMS', lock, '>'},
  {'XRANGE', lock, '-', '+'}, {'XREVRANGE', lock, '+', '-'}, {'XLEN', lock},
  {'XINFO', 'GROUPS', lock}, {'HSET', lock, 'field', 'value'}, {'HDEL', lock, 'field'},
  {'HGET', lock, 'field'}, {'HGETALL', lock}, {'HMGET', lock, 'field'}, {'HEXISTS', lock, 'field'},
  {'HLEN', lock}, {'SADD', lock, 'member'}, {'SREM', lock, 'member'}, {'SCARD', lock},
  {'SISMEMBER', lock, 'member'}, {'SMEMBERS', lock}, {'SMISMEMBER', lock, 'member'},
  {'RPUSH', lock, 'element'}, {'MSET', absent, 'value', absent}, {'MGET', absent},
  {'DEL', absent}, {'EXISTS', absent}, {'EXPIRE', absent, 1}, {'PEXPIRE', absent, 1},
  {'PTTL', absent}, {'TYPE', absent}, {'GET', lock}, {'SET', lock, 'value', 'no option'},
}

for _, call in ipairs(harmless) do
  local reply = redis.pcall(unpack(call))
  if is_denied(reply) then
    return {'DENIED', call[1]}
  elseif is_missing(reply) then
    return {'MISSING', call[1]}
  end
end
return {'PERMITTED'}
