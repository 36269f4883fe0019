"""All configurations in which the protocol must hold: `python3 tests/protocol/run.py [WORD]`."""
import sys
from multiprocessing import Pool
from mc import explore_one, req, ret

ALL = dict(kinds=('expire', 'crash', 'io', 'lostread'))
JOBS = []


def go(name, events, books, faults=0, capacity=0, **knobs):
    JOBS.append(('%s, %d faults' % (name, faults), events, books, dict(ALL, faults=faults, capacity=capacity, **knobs)))


# --- one event after the other, in different milliseconds
four = [req(1, 0, 0), ret(2, 0, 0), req(3, 1, 0), req(4, 0, 0, 1)]
own = [req(1, 1, 2), req(2, 0, 0), req(3, 0, 1), ret(4, 0, 0)]
two = [req(1, 0, 0, 1), req(2, 1, 0, 1)]
go('own context', own, 3, 1, limit=1, kinds=('io',))
go('four events', four, 2, 1)
go('request, return, request', four[:3], 1, 1)
go('request, return, request', four[:3], 1, 2, kinds=('crash',))
go('four events, storage', four, 2, capacity=1)
go('request, return, request, storage', four[:3], 1, 1, capacity=1)
go('three want two books', [req(1, 0, 0, 1), req(2, 1, 1, 0), req(3, 0, 0, 1)], 2)
go('two want two books', two, 2, 1)
go('too many, three events', [req(1, 0, 0, 1), req(2, 1, 0), req(2, 0, 1, 2)], 3, 1, capacity=1, limit=1, storage=(0,))
go('too many', two, 2, 1, capacity=1, limit=1, storage=(0,))
go('too many, one book', [req(1, 0, 0, 1), req(2, 1, 1)], 2, 2, capacity=1, limit=1, storage=(0,))
go('put back and wait', [req(1, 1, 2), req(2, 0, 0), req(3, 0, 1)], 3, 1, limit=1)
go('waiting bound', [ret(1, 0, 0), req(2, 1, 0), req(3, 1, 0, 1)], 2, 1, capacity=1, slots=('stream', 1), lent=((0, 0),), restart=False)
go('dead letters', [req(1, 0, 0, 1), req(2, 1, 0)], 2, 1, capacity=1, dead_letters=True)
go('dead letter', [req(1, 0, 0, 1)], 2, 2, capacity=1, dead_letters=True)
# --- storage books stay in storage until the commit; what reference instances left behind
go('storage book and another', [req(1, 0, 0, 1), req(2, 1, 0)], 2, 1, capacity=1, storage=(0,))
go('storage book taken meanwhile', [req(1, 1, 0), req(2, 0, 0, 1)], 2, 1, capacity=1, storage=(0,))
go('temp set of the older', [req(1, 0, 0, 1), req(2, 1, 0)], 2, 1, temps_of=((0, (0,)),), owned=(0,))
go('temp set of the younger', [req(1, 0, 0), req(2, 1, 0, 1)], 2, 1, temps_of=((1, (0,)),), owned=(1,))
go('fetched by the younger', [req(1, 0, 0), req(2, 1, 0, 1)], 2, 1, fetched=((1, 0),), owned=(1,))
cycle = (('fetch', 0, 1), ('lend', 0, 1), ('give', 0, 1))
go('reference lends and takes back', [req(1, 0, 0)], 1, 1, foreign=cycle)
go('reference, two requests', [req(1, 0, 0), req(2, 1, 0)], 1, foreign=cycle, handed=(0,))
go('reference, dead letter', [req(1, 0, 0), req(2, 0, 0)], 1, 1, kinds=(), foreign=cycle, dead_letters=True)
# --- a fetch that says no
go('nowhere', two, 2, 1, capacity=1, nowhere=(0,))
for doubt in ('scan', 'mark', 'drain'):
    faults = int(doubt == 'scan')
    go('handed over before, ' + doubt, [req(1, 0, 0), req(2, 1, 0, 1)], 2, faults, handed=(0,), doubt=doubt)
    go('another handed over before, ' + doubt, [req(1, 0, 0, 1), req(2, 1, 0)], 2, faults, limit=1, handed=(1,), doubt=doubt)
    go('handed over and nowhere, ' + doubt, [req(1, 0, 0), req(2, 1, 1)], 2, 0, handed=(0,), nowhere=(1,), doubt=doubt)
    go('three handed over, ' + doubt, [req(1, 0, 0, 1)], 3, 0, handed=(1, 0, 2), doubt=doubt)
# --- equal milliseconds
def R(seq, user, *books): return req((5, seq), user, *books)
def T(seq, user, *books): return ret((5, seq), user, *books)


def given(o):
    """Once the first request is granted, its return takes the book back and the second gets it."""
    return o[0][0] != 'accepted' or served(o)


def served(o): return [x[0] for x in o] == ['accepted', 'returned', 'accepted']


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
    ('an older millisecond', [ret((4, 0), 0, 0), R(0, 1, 0), T(0, 1, 0)], 1, LENT),
    ('a younger millisecond', [R(0, 1, 0), T(0, 1, 0), ret((6, 0), 0, 0), req((6, 0), 1, 0)], 1, LENT),
    ('waiting bound', [R(0, 1, 0), T(0, 1, 0), T(1, 1, 0), R(1, 1, 0), T(2, 1, 0)], 1, dict(LENT, slots=('stream', 1))),
]
for name, events, books, knobs in TIES:
    go('tie: ' + name, events, books, **knobs)
    if len(events) < 4 and books == 1: go('tie: ' + name, events, books, 1, **dict(knobs, kinds=('expire', 'crash')))
go('tie: one instance, in order', [R(1, 0, 0), T(0, 0, 0), R(2, 1, 0)], 1, instances=1, in_order=True,
   must=served)
go('tie: mutual', [R(0, 1, 0), T(0, 1, 0)], 1, 2, **LENT)
go('tie: sent meanwhile', [R(0, 1, 0), T(0, 1, 0), R(1, 1, 0), T(1, 1, 0)], 1, arrive=True, **LENT)
go('tie: smaller ids sent meanwhile', [R(2, 1, 0), T(0, 0, 0), R(1, 1, 0), T(1, 1, 0)], 1, arrive=True, **LENT)
# --- a group destroyed and made anew at 0
GROUP = dict(kinds=('regroup',))
go('regroup: request, return', four[:2], 1, 2, kinds=('regroup', 'crash'))
go('regroup: request, return, request', four[:3], 1, 1, **GROUP)
go('regroup: two want one book', [req(1, 0, 0), req(2, 1, 0)], 1, 2, **GROUP)
go('regroup: two want two books', two, 2, 1, **GROUP)
go('regroup: return between', [ret(1, 0, 2), req(2, 1, 0, 1), ret(3, 1, 0)], 3, 1, lent=((0, 1), (2, 0)), **GROUP)
go('regroup: too many', [req(1, 0, 0, 1), req(2, 1, 1)], 2, 1, capacity=1, limit=1, storage=(0,), **GROUP)
# --- the old first step
for name, storage in (('storage book and another', (0,)), ('too many', (0,))):
    go('old, ' + name, two, 2, 1, capacity=1, limit=1 + (name[0] == 's'), storage=storage, hold_storage=True)

if __name__ == '__main__':
    word = ' '.join(sys.argv[1:])
    with Pool() as pool:
        results = pool.map(explore_one, [job for job in JOBS if word in job[0]], 1)
    bad = [name for name, _, verdict in results if verdict != 'ok']
    print('%d configurations, %d states; failed: %s' % (len(results), sum(n for _, n, _ in results), ', '.join(bad) or 'none'))
    sys.exit(bool(bad))
