-- fetch.lua: hand out books from the main storage, each to one request.
--
-- ShelvingService's answer to LendingService, which has no other way to get books out of the main
-- storage. Asked again by the same request, it says so: whether the request has the book still, or
-- has put it back since, into storage or on its way to its shelf, is lending's to know.
--
-- The answer is left in Redis as well: token and number, and behind them, unless all were on their
-- shelves, the reply, packed. So the call that decides by it can be sent right behind this one, and
-- need not wait until the answer has come to libraryd and gone back again.
--
-- KEYS  1 the instance's lock   2 main storage (hash: book that is out -> request that has it)
--       3 answers (hash: instance -> the last one)
-- ARGV  1 token of the lease    2 number of this fetch   3 the instance
--       then books, and for each of them the request that asks for it
-- Returns {"FENCED"} | {"ALL"} (every book was on its shelf and is handed out now)
--       | {"FETCHED", for each book "yes" (it was on its shelf and is handed out now), "again" (it
--         was handed out to this request before) or the request that it is out for}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end

-- The number of arguments before the books.
local BEFORE = 3
local n = (#ARGV - BEFORE) / 2
local reply, taken, out = {'FETCHED'}, {}, {}
-- Lua's stack bounds the arguments of one call. SLICE is even: a pair stays together.
local SLICE = 2000
for first = 1, n, SLICE do
  local last = math.min(first + SLICE - 1, n)
  local requests = redis.call('HMGET', KEYS[2], unpack(ARGV, BEFORE + first, BEFORE + last))
  for k = first, last do
    local book, asking = ARGV[BEFORE + k], ARGV[BEFORE + n + k]
    local has = out[book] or requests[k - first + 1]
    if not has then
      out[book] = asking
      taken[#taken + 1] = book
      taken[#taken + 1] = asking
    end
    -- What somebody else has put there need not be a request's id: then it stands for nobody.
    reply[k + 1] = not has and 'yes' or has == asking and 'again'
      or string.find(has, '^%d+%-%d+$') and has or '?'
  end
end
local all = #taken == 2 * n
local left = ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. (all and '' or cmsgpack.pack(reply))
-- Before the books: it fails where somebody has put something else there, and then none is out.
local noted = redis.pcall('HSET', KEYS[3], ARGV[3], left)
if type(noted) == 'table' and noted.err then
  if not string.find(noted.err, 'OOM', 1, true) then
    return noted
  end
  -- A Redis whose memory is full refuses a script's first write if that may need more, and no other. What
  -- is queued is decided all the same: it leaves the queue, and new events are refused.
  redis.call('HDEL', KEYS[3], ARGV[3])
  redis.call('HSET', KEYS[3], ARGV[3], left)
end
for first = 1, #taken, SLICE do
  redis.call('HSET', KEYS[2], unpack(taken, first, math.min(first + SLICE - 1, #taken)))
end
if all then
  return {'ALL'}
end
return reply
