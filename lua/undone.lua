-- undone.lua: which entries of a stream are waiting for their group, or in work.
-- After order.lua and groups.lua.
--
-- For the operator's check. Changes nothing.
--
-- KEYS  1 the stream
-- ARGV  1 its group   then ids, a few hundred at most
-- Returns {"UNDONE", those of the ids that are}

local is_undone = groups().is_undone
local reply = {'UNDONE'}
for n = 2, #ARGV do
  if is_undone(KEYS[1], ARGV[1], ARGV[n]) then
    reply[#reply + 1] = ARGV[n]
  end
end
return reply
