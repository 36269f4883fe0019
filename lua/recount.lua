-- recount.lua: hold users' counts against their loans, as they are at one instant, and set those
-- right that differ, if told to. After order.lua.
--
-- The caller has scanned the loans, and knows all that were made up to the outcome in ARGV[1].
-- What was lent since stands in the outcomes that follow it: with those, no loan is missed.
--
-- KEYS  1 loans (hash)        2 outcomes (stream)   then each user's count (string)
-- ARGV  1 the last outcome that the caller knows, or "0-0" if there was none
--       2 most outcomes to look at
--       3 "look" or "mend"
--       then for each user, a hundred or so: the user, number of books, and the books that may be
--       lent to the user, each once
-- Returns {"BEHIND"}  more outcomes than that have come since
--       | {"MISSED"}  outcomes that came since are not kept any more
--       | {"COUNTED", then for each user: how many books are lent, the count's type as Redis names
--         it, the count as it was or ""}

local known, most = ARGV[1], tonumber(ARGV[2])
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if first and before(known, first[1]) then
  return {'MISSED'}
elseif not first and known ~= '0-0' then
  return {'MISSED'}
end
local lent_since = {}
local entries = known ~= LAST_OF_ALL
  and redis.call('XRANGE', KEYS[2], '(' .. known, '+', 'COUNT', most + 1) or {}
if #entries > most then
  return {'BEHIND'}
end
for _, entry in ipairs(entries) do
  local field = {}
  for n = 1, #entry[2], 2 do
    field[entry[2][n]] = entry[2][n + 1]
  end
  if field.outcome == 'accepted' and field.user_id and field.book_ids then
    local books = lent_since[field.user_id] or {}
    lent_since[field.user_id] = books
    for book in string.gmatch(field.book_ids, '[^,]+') do
      books[#books + 1] = book
    end
  end
end

local reply, at, wrong = {'COUNTED'}, 4, {}
for n = 3, #KEYS do
  local user, number = ARGV[at], tonumber(ARGV[at + 1])
  local books, seen = {unpack(ARGV, at + 2, at + 1 + number)}, {}
  at = at + 2 + number
  for _, book in ipairs(books) do
    seen[book] = true
  end
  for _, book in ipairs(lent_since[user] or {}) do
    if not seen[book] then
      seen[book] = true
      books[#books + 1] = book
    end
  end
  local lent = 0
  if #books > 0 then
    for _, holder in ipairs(redis.call('HMGET', KEYS[1], unpack(books))) do
      if holder == user then
        lent = lent + 1
      end
    end
  end
  local of_type = redis.call('TYPE', KEYS[n]).ok
  local count = of_type == 'string' and redis.call('GET', KEYS[n]) or ''
  local number_now = of_type == 'none' and 0
    or string.match(count, '^%-?%d+$') and #count < 10 and tonumber(count)
  if (of_type == 'string' or of_type == 'none') and number_now ~= lent then
    wrong[#wrong + 1] = KEYS[n]
    wrong[#wrong + 1] = string.format('%d', lent)
  end
  reply[#reply + 1] = lent
  reply[#reply + 1] = of_type
  reply[#reply + 1] = count
end
if ARGV[3] == 'mend' and #wrong > 0 then
  redis.call('MSET', unpack(wrong))
end
return reply
