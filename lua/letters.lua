-- letters.lua: dead letters, of events that cannot be worked on. Part of scripts that are given by both
-- services.
--
-- The original fields are copied as they are: the caller need not have understood, nor even seen them.

-- The fields of an event that is pending, and how often it was delivered; nil if it is not.
local function look_up(stream, group, id)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)
  if #pending == 0 then
    return nil
  end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  return entry and entry[2] or {}, pending[1][4]
end

-- Lua's stack bounds the arguments of one call: an event of thousands of fields is kept as several
-- letters.
local MOST_VALUES = 6000
local function write_letters(letters, stream, id, cause, deliveries, fields)
  local first = 1
  repeat
    local letter = {'stream', stream, 'event_id', id, 'cause', cause,
      'deliveries', string.format('%d', deliveries)}
    for n = first, math.min(first + MOST_VALUES - 1, #fields) do
      letter[#letter + 1] = fields[n]
    end
    redis.call('XADD', letters, '*', unpack(letter))
    first = first + MOST_VALUES
  until first > #fields
end
