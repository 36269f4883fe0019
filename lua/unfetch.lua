-- unfetch.lua: put books back that a request has fetched and will never use.
--
-- For requests that are given up: whether they had fetched a book, nobody but ShelvingService
-- knows. What another request has is left alone.
--
-- KEYS  1 the instance's lock   2 main storage (hash: book that is out -> request that has it)
-- ARGV  1 token of the lease    then in turn: a book, the request that may have it
-- Returns {"FENCED"} | {"UNFETCHED", how many}

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local back = 0
for at = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[at + 1] then
    back = back + redis.call('HDEL', KEYS[2], ARGV[at])
  end
end
return {'UNFETCHED', back}
