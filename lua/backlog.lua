-- backlog.lua: count entries of a stream, a page of them, without sending them. After order.lua.
--
-- For the operator's status: an exact number where XINFO's lag is not known, and on a Redis that
-- does not tell it. Changes nothing.
--
-- KEYS  1 the stream
-- ARGV  1 the id after which to count   2 most entries to look at
-- Returns {"COUNTED", how many, the first one's id or "", the last one's id or ""}

-- Redis refuses to be asked for what comes behind it.
if ARGV[1] == LAST_OF_ALL then
  return {'COUNTED', 0, '', ''}
end
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local number = #entries
if number == 0 then
  return {'COUNTED', 0, '', ''}
end
return {'COUNTED', number, entries[1][1], entries[number][1]}
