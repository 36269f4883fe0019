-- shelve.lua: put the books of hand-offs on their shelves.
--
-- A hand-off that is not pending any more was done by somebody else: its books may have been
-- fetched again since, so they are left alone.
--
-- KEYS  1 the instance's lock   2 hand-offs (stream)   3 main storage (hash)
-- ARGV  1 token of the lease    2 group of shelving    3 "keep" or "delete" events that are done
--       4 channel of the bell      5 consumer of this instance
--       then for each hand-off: its id, number of books, the books
-- Returns {"FENCED"} | {"SHELVED", "done" or "stale" for each hand-off}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
-- A wrong type must show before the first write.
redis.call('HLEN', KEYS[3])
redis.call('XLEN', KEYS[2])

local reply, done, books = {'SHELVED'}, {}, {}
local at = 6
while at <= #ARGV do
  local id, n = ARGV[at], tonumber(ARGV[at + 1])
  if redis.call('XACK', KEYS[2], ARGV[2], id) == 1 then
    done[#done + 1] = id
    for book = at + 2, at + 1 + n do
      books[#books + 1] = ARGV[book]
    end
    reply[#reply + 1] = 'done'
  else
    reply[#reply + 1] = 'stale'
  end
  at = at + 2 + n
end

-- Lua's stack bounds the arguments of one call.
local SLICE = 2000
for first = 1, #books, SLICE do
  redis.call('HDEL', KEYS[3], unpack(books, first, math.min(first + SLICE - 1, #books)))
end
if #done > 0 and ARGV[3] ~= 'keep' then
  redis.call('XDEL', KEYS[2], unpack(done))
end
-- Requests may wait for these books in other instances: those who listen are told them, as news of no user, so
-- many in one message, and very many not at all. Who is not permitted to ring works on.
local IN_ONE, MOST = 60, 600
if #done > 0 and #books > MOST then
  redis.pcall('PUBLISH', ARGV[4], ARGV[5])
elseif #done > 0 then
  for first = 1, #books, IN_ONE do
    local some = table.concat(books, ',', first, math.min(first + IN_ONE - 1, #books))
    redis.pcall('PUBLISH', ARGV[4], ARGV[5] .. '\n,' .. some)
  end
end
return reply
