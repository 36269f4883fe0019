-- last_given.lua: the id that a stream gave last. Not a script of its own: it is put in front of those
-- that say so in their header.

-- That id from what XINFO STREAM has replied; nil if that is an error.
local function last_given(info)
  for field = 1, #info, 2 do
    if info[field] == 'last-generated-id' then
      return info[field + 1]
    end
  end
end
