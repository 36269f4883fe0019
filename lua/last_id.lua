-- last_id.lua: the last id that a stream has given. After last_given.lua.
--
-- XINFO STREAM tells it together with whole entries. These stay in Redis: an event may be one that kills
-- whoever reads it, or too large to be asked for again and again.
--
-- KEYS  1 the stream
-- Returns {"LAST", id} | {"NONE"} (there is no stream)

local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err and string.find(info.err, 'no such key', 1, true) then
  return {'NONE'}
elseif info.err then
  return info
end
return {'LAST', last_given(info)}
