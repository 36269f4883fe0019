-- retry.lua: take an event's letters out of the dead letters, if it can be put back. After order.lua
-- and last_given.lua.
--
-- In a transaction, right before the XADD that puts the event back: this script cannot do that itself, since
-- an event may have more fields than Lua can pass on. Nothing takes back what a transaction has done when
-- one of its commands fails, so the letters go only if that XADD will not: its stream is one or is not there,
-- has an id left, and this user may add to it. Where they stay, it fails.
--
-- KEYS  1 the stream that the event came from   2 dead letters (stream)
-- ARGV  the ids of the letters
-- Returns {"TAKEN", how many} | {"LEFT"}

local stream, letters = KEYS[1], KEYS[2]

-- Of a stream that is not there this is an error as well, and no hindrance.
local info = redis.pcall('XINFO', 'STREAM', stream)
if info.err and not string.find(info.err, 'no such key', 1, true) then
  return {'LEFT'}
end
if last_given(info) == LAST_OF_ALL then
  return {'LEFT'}
end
-- Who may add is told that 0-0 is no id.
local reply = redis.pcall('XADD', stream, '0-0', 'not', 'an event')
if not string.find(reply.err or '', '0-0', 1, true) then
  return {'LEFT'}
end
return {'TAKEN', redis.call('XDEL', letters, unpack(ARGV))}
