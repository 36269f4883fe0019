"""All configurations in which the protocol must hold: `python3 tests/protocol/run.py [WORD]`."""
import sys
from multiprocessing import Pool
from mc import explore_one, req, ret

ALL = dict(kinds=('expire', 'crash', 'io', 'lostread'))
JOBS = []


def go(name, events, books, faults=0, capacity=0, **knobs):
    # That who waits unasked asks at its next try matters only where a group was lost; it makes twice
    # the states, so it has configurations of its own.
    knobs.setdefault('skip', 'fresh')
    JOBS.append(('%s, %d faults' % (name, faults), events, books, dict(ALL, faults=faults, capacity=capacity, **knobs)))


# --- one event after the other, in different milliseconds
four = [req(1, 0, 0), ret(2, 0, 0), req(3, 1, 0), req(4, 0, 0, 1)]
own = [req(1, 1, 2), req(2, 0, 0), req(3, 0, 1), ret(4, 0, 0)]
two = [req(1, 0, 0, 1), req(2, 1, 0, 1)]
same = [req(1, 0, 0), req(2, 1, 0)]
go('four events', four, 2)
go('four events, storage', four, 2, capacity=1)
go('four events', four, 2, 1, kinds=('io',), late=('decide',))
go('own context', own, 3, limit=1)
go('own context', own, 3, 1, limit=1, kinds=('io',), late=('decide',))
go('put back and wait', own[:3], 3, 1, limit=1)
go('request, return, request', four[:3], 1, 1)
go('request, return, request', four[:3], 1, 2, kinds=('crash',), late=('fetch', 'decide'))
go('request, return, request, storage', four[:3], 1, 1, capacity=1)
go('three want two books', [req(1, 0, 0, 1), req(2, 1, 1, 0), req(3, 0, 0, 1)], 2)
go('two want one book', same, 1, 1, depth=2)
go('two want one book', same, 1, 2)
go('two want two books', two, 2, 1, depth=2)
go('two want two books', two, 2, 2)
go('too many, three events', [req(1, 0, 0, 1), req(2, 1, 0), req(2, 0, 1, 2)], 3, capacity=1, limit=1, storage=(0,))
go('too many', two, 2, 1, capacity=1, limit=1, storage=(0,))
go('too many, one book', [req(1, 0, 0, 1), req(2, 1, 1)], 2, 1, capacity=1, limit=1, storage=(0,))
go('waiting bound', [ret(1, 0, 0), req(2, 1, 0), req(3, 1, 0, 1)], 2, 1, capacity=1, slots=('stream', 1), lent=((0, 0),), restart=False)
go('storage book and another', [req(1, 0, 0, 1), req(2, 1, 0)], 2, 1, capacity=1, storage=(0,))
go('storage book taken meanwhile', [req(1, 1, 0), req(2, 0, 0, 1)], 2, 1, capacity=1, storage=(0,))
go('nowhere', two, 2, 1, capacity=1, nowhere=(0,))
go('nowhere, full', [ret(1, 0, 0)] + [req(n, n - 2, *books) for n, books in ((2, (0, 1)), (3, (0,)))], 2, nowhere=(0,))
# --- what a predecessor had fetched becomes known
stuck = [req(1, 0, 0), req(2, 1, 0, 1)]
go('taken over while it waits', stuck, 2, 1, lent=((1, 0),))
go('taken over while it waits', stuck, 2, 2, lent=((1, 0),), kinds=('io', 'crash'))
go('fetched by the younger', stuck, 2, 1, fetched=((1, 0),), owned=(1,))
through = [ret(1, 1, 1), req(2, 0, 0, 1), req(3, 1, 0), ret(4, 1, 0)]
go('put back, lent and given back', through, 2, lent=((1, 1),), capacity=1)
go('put back, lent and given back', through, 2, 1, lent=((1, 1),), capacity=1, kinds=('io',), late=())
go('put back, lent and given back, stored', through[1:], 2, 1, storage=(1,), limit=1, capacity=1, kinds=('io',), late=())
# --- so many hand-offs that they are not looked through, and whether a book was put back since is not known
for name, events, books, faults, knobs in (
        ('taken over while it waits', stuck, 3, 1, dict(lent=((1, 0),), handed=(2,))),
        ('taken over while it waits, stored', stuck, 3, 1, dict(lent=((1, 0),), handed=(2,), capacity=1)),
        ('two want two books', two, 3, 1, dict(handed=(2,))),
        ('request, return, request', four[:3], 1, 1, {}),
        ('nowhere', two, 3, 1, dict(nowhere=(0,), handed=(2,), late=('fetch', 'decide')))):
    go('not looked through, ' + name, events, books, faults, **dict(knobs, many=1, kinds=('io', 'crash')))
# --- a hand-off is lost: who waits for what is older asks anew in the end
go('lost hand-off, taken over while it waits', stuck, 2, 1, lent=((1, 0),), kinds=('vanish',), ask_again=1, late=())
go('lost hand-off, two want two books', two, 2, 1, kinds=('vanish',), ask_again=1, late=())
# --- who waits without having asked asks at its next try
for name, events, books, knobs in (
        ('two want two books', two, 2, {}), ('taken over while it waits', stuck, 2, dict(lent=((1, 0),))),
        ('request, return, request', four[:3], 1, dict(kinds=('io',))), ('nowhere', two, 2, dict(nowhere=(0,)))):
    go('waits unasked, ' + name, events, books, 1, **dict(knobs, skip='once'))
# --- who waits for what is older asks again: it may, as long as that ends
for name, events, books, faults, knobs in (
        ('four events', four, 2, 0, {}), ('four events, storage', four, 2, 0, dict(capacity=1)),
        ('put back and wait', own[:3], 3, 1, dict(limit=1)), ('request, return, request', four[:3], 1, 1, {}),
        ('two want two books', two, 2, 1, dict(depth=2)), ('too many', two, 2, 1, dict(capacity=1, limit=1, storage=(0,))),
        ('nowhere', two, 2, 1, dict(capacity=1, nowhere=(0,))), ('taken over while it waits', stuck, 2, 1, dict(lent=((1, 0),))),
        ('reservation of the reference', stuck, 2, 0, dict(temps_of=((1, (0,)),), fetched=((1, 0),), owned=(1,)))):
    go('asks again, ' + name, events, books, faults, **dict(knobs, ask_again=1))
# --- dead letters
go('dead letter', [req(1, 0, 0, 1)], 2, 2, capacity=1, dead_letters=True)
go('dead letter and another', stuck, 2, 2, dead_letters=True, kinds=('io',), late=('unfetch', 'reject'))
go('dead letter and another, lost lease', same, 1, 2, dead_letters=True, kinds=('expire', 'crash'))
go('dead letter of a return', four[:2], 1, 2, dead_letters=True, kinds=('crash',))
# --- hand-offs without marks, and a reference instance
go('handed over before', [req(1, 0, 0), req(2, 1, 0, 1)], 2, 1, handed=(0,), late=('fetch', 'decide'))
go('another handed over before', [req(1, 0, 0, 1), req(2, 1, 0)], 2, 1, limit=1, handed=(1,), late=('fetch', 'decide'))
go('handed over and nowhere', [req(1, 0, 0), req(2, 1, 1)], 2, handed=(0,), nowhere=(1,))
go('three handed over', [req(1, 0, 0, 1)], 3, handed=(1, 0, 2))
go('reservation of the reference', stuck, 2, 1, temps_of=((1, (0,)),), fetched=((1, 0),), owned=(1,), kinds=('io', 'crash'))
cycle = (('fetch', 0, 1), ('lend', 0, 1), ('give', 0, 1))
go('reference fetches and lends', same, 1, 1, foreign=cycle[:2])
go('reference takes back', same, 1, 1, lent=((0, 1),), foreign=cycle[2:], late=('fetch', 'decide'))
go('reference takes back another', stuck, 3, 1, lent=((1, 0), (2, 1)), foreign=(('give', 2, 1),), kinds=('io',), late=())
go('reference, dead letter', [req(1, 0, 0), req(2, 0, 0)], 1, 1, kinds=(), foreign=cycle[:2], dead_letters=True)
# --- equal milliseconds; sequence numbers from a million on are those of submit.lua
def R(seq, user, *books): return req((5, seq), user, *books)
def T(seq, user, *books): return ret((5, seq), user, *books)


def given(o):
    """Once the first request is granted, its return takes the book back and the second gets it."""
    return o[0][0] != 'accepted' or served(o)


def served(o): return [x[0] for x in o] == ['accepted', 'returned', 'accepted']


M = 10 ** 6
LENT = dict(lent=((0, 0),))
TIES = [
    ('R0 T0', [R(0, 0, 0), T(0, 0, 0)], 1, {}),
    ('R0 T1', [R(0, 0, 0), T(1, 0, 0)], 1, {}),
    ('T0 R1', [R(1, 0, 0), T(0, 0, 0)], 1, {}),
    ('T0 R1 R2', [R(1, 0, 0), T(0, 0, 0), R(2, 1, 0)], 1, dict(must=given)),
    ('R0 T0 R1', [R(0, 0, 0), T(0, 0, 0), R(1, 1, 0)], 1, dict(must=given)),
    ('mutual R0 T0', [R(0, 1, 0), T(0, 1, 0)], 1, LENT),
    ('mutual T0 R1', [R(1, 1, 0), T(0, 1, 0)], 1, LENT),
    ('mutual pairs', [R(0, 1, 0), T(0, 1, 0), R(1, 1, 0), T(1, 1, 0)], 1, LENT),
    ('mutual pairs, returns first', [R(1, 1, 0), T(0, 1, 0), R(3, 1, 0), T(2, 1, 0)], 1, LENT),
    ('mutual with a grant inside', [R(0, 1, 0), T(0, 1, 1), R(1, 1, 1), T(1, 1, 0)], 2, LENT),
    ('mutual, a return ends it', [R(0, 1, 0), T(0, 1, 1), T(1, 0, 0)], 2, dict(lent=((0, 0), (1, 0)))),
    ('a grant makes a return act', [R(0, 1, 1), T(0, 0, 1), R(1, 0, 1)], 2, {}),
    ('two books', [R(0, 0, 0, 1), T(0, 0, 0, 1), R(1, 1, 0, 1)], 2, {}),
    ('two books, one lent', [R(0, 1, 0, 1), T(0, 1, 0, 1), R(1, 0, 1)], 2, LENT),
    ('nowhere', [R(0, 1, 0), T(0, 1, 0), R(1, 1, 0)], 1, dict(nowhere=(0,))),
    ('too many', [R(0, 0, 0, 1), T(0, 0, 2), R(1, 1, 0)], 3, dict(limit=1)),
    ('too many, and its book', [R(0, 0, 0, 1), R(1, 1, 0), T(0, 1, 0)], 2, dict(limit=1)),
    ('too many, back into storage', [R(0, 0, 0, 1), T(0, 1, 0), R(1, 1, 0, 2)], 3, dict(limit=1, capacity=1)),
    ('too many, one is lent', [R(0, 0, 1, 2), R(1, 1, 1, 0), T(0, 1, 1)], 3, dict(LENT, limit=1)),
    ('an older millisecond', [ret((4, 0), 0, 0), R(0, 1, 0), T(0, 1, 0)], 1, LENT),
    ('a younger millisecond', [R(0, 1, 0), T(0, 1, 0), ret((6, 0), 0, 0), req((6, 0), 1, 0)], 1, LENT),
    ('waiting bound', [R(0, 1, 0), T(0, 1, 0), T(1, 1, 0), R(1, 1, 0), T(2, 1, 0)], 1, dict(LENT, slots=('stream', 1))),
    ('ids in one order', [R(M, 0, 0), T(2 * M, 0, 0), R(3 * M, 1, 0)], 1, {}),
    ('a return in order before', [T(M, 0, 0), R(2 * M, 1, 0), T(3 * M, 0, 0)], 1, LENT),
    ('ids of both kinds', [R(M, 1, 0), T(1, 1, 0), T(2 * M, 1, 0)], 1, LENT),
]
for name, events, books, knobs in TIES:
    go('tie: ' + name, events, books, **knobs)
    if len(events) < 3: go('tie: ' + name, events, books, 1, **dict(knobs, kinds=('expire', 'crash')))
go('tie: T0 R1 R2', *TIES[3][1:3], 1, kinds=('io',), late=(), **TIES[3][3])
go('tie: one instance, in order', [R(1, 0, 0), T(0, 0, 0), R(2, 1, 0)], 1, instances=1, in_order=True, must=served)
go('tie: mutual', [R(0, 1, 0), T(0, 1, 0)], 1, 2, **LENT)
go('tie: sent meanwhile', [R(0, 1, 0), T(0, 1, 0), R(1, 1, 0)], 1, arrive=True, **LENT)
go('tie: smaller ids sent meanwhile', [R(2, 1, 0), T(0, 0, 0), R(1, 1, 0), T(1, 1, 0)], 1, arrive=True, **LENT)
go('tie: dead letter', [R(0, 1, 0), T(0, 1, 0), R(1, 1, 0)], 1, 1, kinds=(), dead_letters=True, **LENT)
# --- a group destroyed and made anew at 0
GROUP = dict(kinds=('regroup',), skip='once')
go('regroup: request, return', four[:2], 1, 2, kinds=('regroup', 'crash'), skip='once')
go('regroup: request, return, request', four[:3], 1, 1, **GROUP)
go('regroup: two want one book', same, 1, 2, **GROUP)
go('regroup: two want two books', two, 2, 1, **GROUP)
go('regroup: taken over while it waits', stuck, 2, 1, **dict(GROUP, lent=((1, 0),)))
go('regroup: return between', [ret(1, 0, 2), req(2, 1, 0, 1), ret(3, 1, 0)], 3, 1, lent=((0, 1), (2, 0)), **GROUP)
go('regroup: too many', [req(1, 0, 0, 1), req(2, 1, 1)], 2, 1, capacity=1, limit=1, storage=(0,), **GROUP)

if __name__ == '__main__':
    word = ' '.join(sys.argv[1:])
    with Pool() as pool:
        results = pool.map(explore_one, [job for job in JOBS if word in job[0]], 1)
    bad = [name for name, _, verdict in results if verdict != 'ok']
    print('%d configurations, %d states; failed: %s' % (len(results), sum(n for _, n, _ in results), ', '.join(bad) or 'none'))
    sys.exit(bool(bad))
