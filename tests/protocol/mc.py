"""Explicit-state model of the protocol between LendingService and ShelvingService.

A script in Redis is one atomic step; everything between two steps may be interleaved with
everything else, cut off, or arrive late. `explore` visits every reachable state, checks the
invariants of ARCHITECTURE.md in each, and then that rest can be reached from every state without
further faults and that no cycle exists (nothing can go round for ever).
"""
import time
from collections import namedtuple

# Books, users, events and instances are small integers, indices into the tuples below.
State = namedtuple('State', [
    'events',    # per event: 'n' not sent yet | 'q' queued | number of the instance it is pending for | 'd' decided
    'held',      # per instance, per event: None | Held (what the instance's memory knows of it)
    'inst',      # per instance: (token in the lock, token of the process; negative: the process is dead)
    'lent',      # per book: user | -1                      (lent_books)
    'storage',   # sorted books                             (automated_book_storage)
    'mark',      # per book: None | ('?', e) reserved by e | ('>', h) in hand-off h | ('=', e) lent to e
    'temp',      # per event: books reserved by a reference instance (request:{id}:temp)
    'shelf',     # per book: None on its shelf | event that fetched it | 'old' | 'ref'
    'handoffs',  # (id, books, pending for | -1) of each undone hand-off
    'outcome',   # per event: None | tuple
    'count',     # per user
    'late',      # commands still under way on connections that were given up
    'ties',      # None | (front, events that wait only because something older is undecided)
    'foreign',   # how many steps of the reference instance's script are done
    'faults',    # how many faults may still happen
])
# phase: 'try' | 'wait' | 'drain' (until no hand-off is undone) | 'gate' (a fetch said no: wait until a refusal is allowed) | ('fetch', books, sure)
# yes: books that fetch gave; no: (book, final, holder); doubt: None | hand-offs to wait for | scan: (book, holder)
Held = namedtuple('Held', 'phase yes no doubt')
FRESH = Held('try', (), (), None)
NOBODY, REFERENCE, MIDWAY = -1, 9, 'ref'

RULES = dict(  # what the protocol demands; holes.py switches them off one by one
    fence=True,             # writing scripts of lending are refused under another token than the lock's
    fence_fetch=True,       # so is fetch
    token_per_connection=True,  # an I/O error takes a new token
    token_per_lease=True,   # a lease taken again takes a new token
    pending='first',        # decide works for whom the event is pending: 'me' always | 'first' the steps before the
                            # commit, which takes XACK for an answer | 'xack' the commit alone | None
    shelve_guard=True,      # shelve only if XACK answers 1
    transit=True,           # a book marked '>' whose hand-off is undone is waited for
    reserved=True,          # so is a book marked '?'
    hold_first=True,        # the mark '?' is set before fetch
    hold_storage=False,     # old: the first step takes storage books into the temp set, with a mark
    reconcile=True,         # own pending events in nobody's hand are found
    order=True,             # refusals wait for what is older
    strict_return=True,     # each book not taken back is a refusal
    young_loans=True,       # a return leaves loans of younger requests alone
    foresee=True,           # an order that would wait anyhow sets no marks
    gate=True,              # after a final no: retry only when a refusal is allowed
    doubt='scan',           # a no while hand-offs are undone: None final | 'drain' wait for none | 'mark' those up to
                            # now, then final | 'scan' look for the book in the hand-offs, ask again, final if the same
    names=True,             # a no names the request that has the book; an undecided one is waited for
    temps=True,             # so is a book in the temp set of any undecided event
    tie='on',               # equal milliseconds: None total order | 'strict' wait for all | 'on' the rule with ties
    tie_clear='effect',     # ties end: 'front' with an effect of the front | 'effect' with any effect | None never
    tie_full=True,          # undelivered events count as registered once a whole waiting bound of them is
    slots=None,             # waiting bound: None | ('stream', n) | ('shared', n) events of an instance
    claim_bound=False,      # claims obey the waiting bound
    dead_release='fetch',   # unconfirmed marks of a dead letter: 'fetch' first | 'shelve' | 'storage'
    sweep=None,             # keeper releases marks of decided events: None | 'fetch' first | 'shelve'
    stale_release=True,     # a stale step releases what it had for a decided event
    epoch=True,             # a group made anew ends all tokens
)
SETTING = dict(  # the library and its misfortunes
    instances=2, capacity=1, limit=2, storage=(), lent=(), loan_of=(), nowhere=(), temps_of=(), fetched=(),
    handed=(), foreign=(), owned=(), arrive=False, in_order=False, restart=True, dead_letters=False, half=False,
    faults=1, kinds=('expire', 'crash'), late=('fetch', 'decide', 'shelve'), must=None)


class Violation(Exception):
    pass


def req(event_id, user, *books): return event_id, 'req', user, books
def ret(event_id, user, *books): return event_id, 'ret', user, books


def put(t, i, v):
    return t[:i] + (v,) + t[i + 1:]


class Model:
    def __init__(self, events, books, **knobs):
        """`events`: (id, 'req' | 'ret', user, books); an id is a number or (ms, seq)."""
        assert not set(knobs) - set(RULES) - set(SETTING), knobs
        self.__dict__.update({**RULES, **SETTING, **knobs})
        self.spec, self.books = events, books
        ids = [e[0] if isinstance(e[0], tuple) else (e[0], 0) for e in events]
        # the total order: millisecond, sequence, request before return
        self.key = [(ms, seq, 'req ret'.split().index(e[1])) for (ms, seq), e in zip(ids, events)]
        self.all = range(len(events))

    def kind(self, e): return self.spec[e][1]
    def ms(self, e): return self.key[e][0]

    def start(self):
        n, count = len(self.spec), [0, 0]
        lent, shelf, mark = [NOBODY] * self.books, [None] * self.books, [None] * self.books
        for b, u in self.lent:
            lent[b] = u; count[u] += 1
        for e, b in self.loan_of: mark[b] = ('=', e)
        temp = [()] * n
        for e, books in self.temps_of: temp[e] = books
        for b in [b for b, _ in self.lent] + list(self.storage) + list(self.nowhere) + list(self.handed) + sum(map(list, temp), []):
            shelf[b] = 'old'
        for e, b in self.fetched: shelf[b] = e
        events = ['n' if self.arrive else 'q'] * n
        for e in self.owned: events[e] = REFERENCE
        return State(tuple(events), ((None,) * n,) * self.instances, ((1, 1),) * self.instances, tuple(lent),
                     tuple(sorted(self.storage)), tuple(mark), tuple(temp), tuple(shelf),
                     tuple((100 + k, (b,), NOBODY) for k, b in enumerate(self.handed)), (None,) * n, tuple(count),
                     (), None, 0, self.faults)

    # ---- what the state says

    def undecided(self, S): return [x for x in self.all if S.events[x] not in ('n', 'd')]
    def front(self, S): return min(self.undecided(S), key=lambda x: self.key[x], default=None)
    def undone(self, S, h): return any(x[0] == h for x in S.handoffs)
    def midway(self, S): return S.foreign > 0 and self.foreign[S.foreign - 1][0] == 'fetch'

    def truth(self, S, b):
        """Where book b really is, known to nobody but the model."""
        if S.lent[b] >= 0: return 'lent'
        if b in S.storage: return 'storage'
        for x in self.undecided(S):
            if b in S.temp[x]: return ('reserved', x)
        if S.shelf[b] is None: return 'shelf'
        if any(b in h[1] for h in S.handoffs): return 'transit'
        if S.shelf[b] == MIDWAY and self.midway(S): return ('reserved', MIDWAY)
        if isinstance(S.shelf[b], int) and S.events[S.shelf[b]] != 'd': return ('reserved', S.shelf[b])
        return 'nowhere'

    def may_refuse(self, S, e, full=None):
        """Order: nothing older is undecided, and what cannot be told apart waits for e as e for it."""
        for x in self.undecided(S):
            if x == e: continue
            if self.tie is None or self.kind(x) == self.kind(e):
                if self.key[x] < self.key[e]: return False
            elif self.ms(x) < self.ms(e): return False
            elif self.ms(x) == self.ms(e):
                if self.tie == 'strict' or self.key[x] < self.key[e]: return False
                tied = S.ties[1] if S.ties and S.ties[0] == e else ()
                full = self.tie_full and self.slots and len([y for y in tied if self.kind(y) == self.kind(x)]) >= self.slots[1]
                if x not in tied and not (S.events[x] == 'q' and full): return False
        return True

    def unregistered(self, S, e):
        """e waits for something older in its own millisecond and has not yet been noted as doing so."""
        f = self.front(S)
        return self.tie == 'on' and f != e and self.ms(f) == self.ms(e) and not (S.ties and S.ties[0] == f and e in S.ties[1])

    def could_act(self, S, x):
        """x would be granted or taken back whole, were it tried now."""
        _, kind, u, books = self.spec[x]
        if kind == 'ret': return all(S.lent[b] == u and not self.younger_loan(S, x, b) for b in books)
        return (all(self.truth(S, b) in ('shelf', 'storage', ('reserved', x)) for b in books)
                and S.count[u] + len(books) <= self.limit)

    def younger_loan(self, S, e, b):
        m = S.mark[b]
        if not self.young_loans or m is None or m[0] != '=': return False
        return self.ms(m[1]) > self.ms(e) if self.tie else self.key[m[1]] > self.key[e]

    def check_refusal(self, S, e, books):
        for x in self.undecided(S):
            if x == e: continue
            if self.kind(x) == self.kind(e) and self.key[x] < self.key[e] or self.ms(x) < self.ms(e):
                raise Violation('refusal of event %d while the older %d is undecided' % (e, x))
            if self.kind(x) != self.kind(e) and self.ms(x) == self.ms(e):
                if self.key[x] < self.key[e]:
                    raise Violation('event %d refused before %d, smaller in its millisecond' % (e, x))
                if self.could_act(S, x) and not (self.tie_full and self.slots):
                    raise Violation('event %d refused while %d of its millisecond could act' % (e, x))
        if self.kind(e) == 'ret': return
        for b in books:
            t = self.truth(S, b)
            if t != 'lent' and not (t == 'nowhere' and b in self.nowhere):
                raise Violation('event %d refused book %d that is %s' % (e, b, t))

    # ---- scripts of lending; D is a State whose parts are lists, to be changed

    def open(self, S): return State(*[list(x) if isinstance(x, tuple) and k != 'ties' else x for k, x in zip(State._fields, S)])
    def close(self, D): return State(*[tuple(x) if isinstance(x, list) else x for x in D])

    def put_back(self, D, books, shelve=()):
        """Into automated storage while there is room, the rest (and `shelve`) in one hand-off."""
        rest = list(shelve)
        for b in books:
            D.mark[b] = None
            if len(D.storage) < self.capacity: D.storage.append(b); D.storage.sort()
            else: rest.append(b)
        if rest:
            used = ({x[0] for x in D.handoffs} | {g[3][0] for g in D.late if g[0] == 'shelve'}
                    | {m[1] for m in D.mark if m and m[0] == '>'})
            h = min(set(range(99)) - used)
            D.handoffs.append((h, tuple(rest), NOBODY))
            for b in rest: D.mark[b] = ('>', h)
        return D

    def settle(self, D, e, outcome):
        """Outcome, XACK and XDEL; what was noted of equal milliseconds ends with an effect."""
        if D.outcome[e] is not None: raise Violation('second outcome for event %d' % e)
        D.outcome[e], D.events[e], D.temp[e] = outcome, 'd', ()
        ties = D.ties
        if ties:
            effect = outcome[0] not in ('none', 'unchanged')
            tied = tuple(x for x in ties[1] if x != e)
            if effect and (self.tie_clear == 'effect' or self.tie_clear == 'front' and ties[0] == e): ties = None
            elif ties[0] == e:
                f = self.front(D)
                ties = (f, tuple(x for x in tied if x != f)) if f is not None and self.ms(f) == self.ms(e) else None
            else: ties = (ties[0], tied)
            if ties and not ties[1]: ties = None
        return D._replace(ties=ties)

    def wait(self, D, e):
        """Noted, so that the front of this millisecond need not wait for e any longer."""
        f = self.front(D)
        if self.tie == 'on' and f != e and self.ms(f) == self.ms(e):
            old = D.ties[1] if D.ties and D.ties[0] == f else ()
            D = D._replace(ties=(f, tuple(sorted(set(old) | {e}))))
        return D

    def decide(self, S, i, e, held):
        """The script that begins, commits or releases: the new state, what to do next."""
        if self.pending == 'me' and S.events[e] != i: return self.stale(S, e, held)
        step = self.decide_return if self.kind(e) == 'ret' else self.decide_request
        if self.pending == 'first' and S.events[e] != i:
            T, after, outcome = step(S, e, held) if isinstance(S.events[e], int) else (None, None, None)
            return (T, after, outcome) if outcome else self.stale(S, e, held)
        if self.pending == 'xack' and not isinstance(S.events[e], int):  # XACK answers 0, once it comes to that
            try: T, after, outcome = step(S._replace(outcome=put(S.outcome, e, None)), e, held)
            except Violation: outcome = 'refused'
            return self.stale(S, e, held) if outcome else (T._replace(outcome=S.outcome), after, None)
        return step(S, e, held)

    def stale(self, S, e, held):
        D = self.open(S)
        if self.stale_release and (S.events[e] == 'd' or self.pending == 'xack' and S.events[e] == 'q'):
            gone = [b for b in range(self.books) if S.lent[b] < 0 and b not in S.storage and (
                S.mark[b] == ('?', e) or S.events[e] == 'd' and b in held.yes and S.mark[b] in (None, ('=', e)))]
            self.put_back(D, (), gone)
        return self.close(D), None, 'stale'

    def decide_return(self, S, e, held):
        _, _, u, books = self.spec[e]
        back = [b for b in books if S.lent[b] == u and not self.younger_loan(S, e, b)]
        other = [b for b in books if b not in back]
        refuse = bool(other) if self.strict_return else not back
        D = self.open(S)
        if refuse and self.order and not self.may_refuse(S, e):
            return self.close(self.wait(D, e)), Held('wait', (), (), None), None
        if other: self.check_refusal(S, e, other)
        for b in back:
            m = S.mark[b]
            if m and m[0] == '=' and self.ms(m[1]) > self.ms(e): raise Violation('return %d takes back the younger loan of book %d' % (e, b))
            D.lent[b] = NOBODY; D.count[u] -= 1; D.mark[b] = None
        self.put_back(D, back)
        outcome = ('returned', tuple(back)) if back else ('unchanged',)
        return self.close(self.settle(D, e, outcome)), None, outcome

    def waited_for(self, S, e, b):
        """b is reserved by another request or in transit."""
        m = S.mark[b]
        if m and m[0] == '?' and m[1] != e: return self.reserved
        if m and m[0] == '>': return self.transit and self.undone(S, m[1])
        return False

    def undecided_holder(self, S, e, x):
        return self.midway(S) if x == MIDWAY else isinstance(x, int) and x != e and S.events[x] != 'd'

    def decide_request(self, S, e, held):
        _, _, u, books = self.spec[e]
        final, soft = {b for b, f, x in held.no if f}, {b for b, f, x in held.no if not f}
        holder = {b: x for b, f, x in held.no}
        have, need, store, lent, nowhere, block, doubt, free = [], [], [], [], [], [], [], []
        for b in books:
            own = S.mark[b] == ('?', e)
            if S.lent[b] >= 0: lent.append(b)
            elif b in S.temp[e]: have.append(b)
            elif b in S.storage: store.append(b)
            elif (own or not self.hold_first) and b in held.yes: have.append(b)
            elif self.waited_for(S, e, b): block.append(b)
            elif self.temps and any(b in S.temp[x] for x in self.undecided(S)): block.append(b)
            elif b in final or b in soft:
                if self.names and self.undecided_holder(S, e, holder[b]): block.append(b)
                elif b in final: nowhere.append(b)
                else: doubt.append(b)
            elif own: need.append(b)
            else: free.append(b)
        if need: return S, held._replace(phase=('fetch', tuple((b, self.sure(S, held, b)[0]) for b in need))), None
        sure = {}
        for b in list(free):  # a book that fetch refused before: is it worth asking again?
            sure[b], ask = self.sure(S, held, b)
            if not ask: free.remove(b); block.append(b)
        available = have + store + free
        many = S.count[u] + len(available) > self.limit
        refuse = bool(block or doubt or lent or nowhere or many or not available)
        D = self.open(S)
        reserved = [b for b in books if D.mark[b] == ('?', e)]
        if refuse and self.order and (block or doubt or not self.may_refuse(S, e)) and (self.foresee or not free):
            for b in reserved: D.mark[b] = None
            D.temp[e] = ()
            self.put_back(D, have)
            if not block and not doubt: D = self.wait(D, e)
            after = Held('gate' if nowhere and self.gate and not doubt else 'wait', (), (), held.doubt)
            if doubt or block and soft:
                if self.doubt == 'drain': after = after._replace(phase='drain')
                elif self.doubt == 'mark': after = after._replace(doubt=tuple(sorted(h[0] for h in D.handoffs)))
                else: after = after._replace(doubt=tuple(sorted((b, x) for b, f, x in held.no)))
            return self.close(D), after, None
        if free:
            if self.hold_storage:
                for b in store: D.storage.remove(b); D.temp[e] = tuple(sorted(D.temp[e] + (b,))); D.mark[b] = ('?', e)
            if self.hold_first:
                for b in free: D.mark[b] = ('?', e)
            return self.close(D), held._replace(phase=('fetch', tuple((b, sure[b]) for b in free))), None
        for b in reserved: D.mark[b] = None
        for b in store: D.storage.remove(b)
        if many:
            self.check_refusal(S, e, ()); self.put_back(D, available)
            outcome = ('many', tuple(available))
        elif not available:
            self.check_refusal(S, e, books); outcome = ('none',)
        else:
            if len(available) < len(books): self.check_refusal(S, e, [b for b in books if b not in available])
            for b in available: D.lent[b] = u; D.mark[b] = ('=', e)
            D.count[u] += len(available); outcome = ('accepted', tuple(available))
        return self.close(self.settle(D, e, outcome)), None, outcome

    def sure(self, S, held, b):
        """(what would make a no to the fetch of b final, whether to ask at all)"""
        if self.doubt is None: return 'final', True
        if self.doubt == 'drain': return ('doubt' if S.handoffs else 'final'), True
        if self.doubt == 'mark':
            if held.doubt is None: return ('doubt' if S.handoffs else 'final'), True
            return 'final', not any(self.undone(S, h) for h in held.doubt)
        holder = dict(held.doubt or ()).get(b)
        if holder is None: return 'doubt', True
        if self.undecided_holder(S, None, holder) or any(b in h[1] for h in S.handoffs): return 'doubt', False
        return ('if', holder), True

    def dead_letter(self, S, e, held):
        """Given up by the worker that has it: everything is put back, outcome `rejected`."""
        D = self.open(S)
        marked = [b for b in range(self.books) if S.mark[b] == ('?', e)]
        for b in marked: D.mark[b] = None
        unsure = [b for b in marked if S.lent[b] < 0 and b not in held.yes and b not in S.temp[e] and b not in [n[0] for n in held.no]]
        have = [b for b in range(self.books) if b in S.temp[e] or b in marked and b in held.yes and S.lent[b] < 0]
        if self.dead_release == 'storage': self.put_back(D, have + unsure)
        else: self.put_back(D, have, unsure)
        return self.close(self.settle(D, e, ('rejected',)))

    # ---- scripts of shelving

    def fetch(self, S, e, b):
        """(new state, who has the book now)"""
        return (S._replace(shelf=put(S.shelf, b, e)), e) if S.shelf[b] is None else (S, S.shelf[b])

    def shelve(self, S, h, books):
        """XACK tells whether the hand-off is pending, not for whom."""
        if self.shelve_guard and not any(x[0] == h and x[2] != NOBODY for x in S.handoffs): return S
        D = self.open(S)
        for b in books:
            D.shelf[b] = None
            if D.mark[b] == ('>', h): D.mark[b] = None  # a mark of a done hand-off counts as absent
        D.handoffs[:] = [x for x in S.handoffs if x[0] != h]
        if self.doubt == 'mark':
            D.held[:] = [tuple(x and x.doubt and x._replace(doubt=tuple(d for d in x.doubt if d != h)) or x for x in held) for held in S.held]
        return self.close(D)

    # ---- steps

    def hold(self, S, i, e, held): return S._replace(held=put(S.held, i, put(S.held[i], e, held)))

    def take(self, S, i, events):
        """Delivered to i by XREADGROUP or XCLAIM, known in no detail."""
        for e in events: S = self.hold(S._replace(events=put(S.events, e, i)), i, e, FRESH)
        return S

    def begin_anew(self, S, i, token):
        """A new token; everything in hand is dropped, own pending entries are read."""
        S = S._replace(inst=put(S.inst, i, (token, token)))
        return S._replace(held=put(S.held, i, tuple(FRESH if S.events[e] == i else None for e in self.all)))

    def has_room(self, S, i, kind):
        if self.slots is None: return True
        return sum(o == i and (self.slots[0] == 'shared' or self.kind(e) == kind) for e, o in enumerate(S.events)) < self.slots[1]

    def run_late(self, S, call):
        kind, i, _, args = call
        if kind == 'fetch': return self.fetch(S, *args)[0]
        if kind == 'shelve': return self.shelve(S, *args)
        e, held = args
        return self.decide(S, i, e, held)[0]

    def steps(self, S):
        if self.arrive: yield from self.arrivals(S)
        if self.foreign: yield from self.foreign_steps(S)
        for i in range(self.instances):
            lease, proc = S.inst[i]
            alive, leads = proc > 0, proc > 0 and lease == proc
            calls = []
            if leads: yield from self.reads(S, i)
            if leads or alive and not self.fence: yield from self.work(S, i, calls)
            elif alive and not lease:
                yield 'i%d is fenced; takes a new lease' % i, self.begin_anew(S, i, proc + self.token_per_lease)
            if not alive and lease:
                yield 'i%d: the lease of the dead runs out' % i, S._replace(inst=put(S.inst, i, (0, proc)))
            elif not alive and self.restart:
                yield 'i%d restarts' % i, self.begin_anew(S, i, 1 - proc)
            if S.faults: yield from self.misfortunes(S._replace(faults=S.faults - 1), i, [c for c in calls if c[0] in self.late])
        if S.faults and 'regroup' in self.kinds: yield from self.regroups(S._replace(faults=S.faults - 1))
        for n, call in enumerate(S.late):
            T = S._replace(late=S.late[:n] + S.late[n + 1:])
            stale = S.inst[call[1]][0] != call[2] and (self.fence_fetch if call[0] == 'fetch' else self.fence)
            yield 'LATE %s%s' % (self.say(call), ' (fenced)' if stale else ''), T if stale else self.run_late(T, call)

    def say(self, call): return 'i%d %s %s' % (call[1], call[0], call[3][0] if call[0] == 'decide' else call[3])

    def arrivals(self, S):
        for e in self.all:
            if S.events[e] == 'n' and not any(S.events[x] == 'n' and (
                    self.ms(x) < self.ms(e) or self.kind(x) == self.kind(e) and self.key[x] < self.key[e]) for x in self.all):
                yield 'e%d is sent' % e, S._replace(events=put(S.events, e, 'q'))

    def foreign_steps(self, S):
        if S.foreign == len(self.foreign): return
        what, b, u = self.foreign[S.foreign]
        T = S._replace(foreign=S.foreign + 1)
        if what == 'fetch' and S.shelf[b] is None and S.lent[b] < 0 and b not in S.storage:
            yield 'reference fetches b%d' % b, T._replace(shelf=put(S.shelf, b, MIDWAY))
        elif what == 'lend':
            yield 'reference lends b%d' % b, T._replace(lent=put(S.lent, b, u), count=put(S.count, u, S.count[u] + 1))
        elif what == 'give' and S.lent[b] == u:
            yield 'reference takes b%d back' % b, T._replace(
                lent=put(S.lent, b, NOBODY), count=put(S.count, u, S.count[u] - 1),
                handoffs=S.handoffs + ((200 + S.foreign, (b,), NOBODY),))

    def reads(self, S, i):
        for kind in ('req', 'ret'):
            queued = [e for e in self.all if S.events[e] == 'q' and self.kind(e) == kind]
            if queued and self.has_room(S, i, kind):
                e = min(queued, key=lambda x: self.key[x])
                yield 'i%d reads e%d' % (i, e), self.take(S, i, [e])
                if S.faults and 'lostread' in self.kinds:
                    yield 'FAULT i%d reads e%d, the reply is lost' % (i, e), S._replace(events=put(S.events, e, i), faults=S.faults - 1)
        queued = [n for n, h in enumerate(S.handoffs) if h[2] == NOBODY]
        if queued:
            h = S.handoffs[queued[0]]
            yield 'i%d reads hand-off %s' % (i, h), S._replace(handoffs=put(S.handoffs, queued[0], h[:2] + (i,)))
        for j in list(range(self.instances)) + [REFERENCE]:
            if j == i or j != REFERENCE and S.inst[j][0]: continue
            theirs = [e for e in self.all if S.events[e] == j]
            if not theirs and not any(h[2] == j for h in S.handoffs): continue
            if self.claim_bound: theirs = [e for e in theirs if self.has_room(S, i, self.kind(e))][:1]
            yield 'i%d claims from i%d' % (i, j), self.take(S, i, theirs)._replace(
                handoffs=tuple(h[:2] + (i,) if h[2] == j else h for h in S.handoffs))
        if self.sweep:
            for b, m in enumerate(S.mark):
                if m and m[0] == '?' and S.events[m[1]] == 'd':
                    T, x = self.fetch(S, m[1], b) if self.sweep == 'fetch' else (S, m[1])
                    D = self.open(T); D.mark[b] = None
                    if S.lent[b] < 0 and x == m[1]: self.put_back(D, (), [b])
                    yield 'i%d sweeps b%d' % (i, b), self.close(D)

    def work(self, S, i, calls):
        token = S.inst[i][1]
        for e in self.all:
            held = S.held[i][e]
            if held is None:
                if S.events[e] == i and self.reconcile: yield 'i%d finds its own e%d' % (i, e), self.hold(S, i, e, FRESH)
                continue
            if 'regroup' in self.kinds and S.events[e] != i and not held.yes:  # with a yes it must go by `stale`
                yield 'i%d drops e%d (NOGROUP)' % (i, e), self.hold(S, i, e, None)
            if held.phase == 'drain' and S.handoffs: continue
            if held.phase == 'gate' and not (self.may_refuse(S, e) or self.unregistered(S, e)): continue
            if self.in_order and held.phase == 'try' and any(
                    S.held[i][x] and (S.held[i][x].phase == 'try' or S.held[i][x].phase[0] == 'fetch') and self.key[x] < self.key[e]
                    and set(self.spec[x][3]) & set(self.spec[e][3]) for x in self.all): continue
            if held.phase[0] == 'fetch':
                for b, sure in held.phase[1]:
                    T, x = self.fetch(S, e, b); calls.append(('fetch', i, token, (e, b)))
                    rest = tuple(p for p in held.phase[1] if p[0] != b)
                    final = sure == 'final' or sure == ('if', x)
                    got = held._replace(phase=('fetch', rest) if rest else 'try')
                    got = got._replace(yes=tuple(sorted(held.yes + (b,)))) if x == e else got._replace(no=tuple(sorted(held.no + ((b, final, x),), key=str)))
                    yield 'i%d fetches b%d for e%d: %s' % (i, b, e, 'yes' if x == e else 'no, %s has it' % x), self.hold(T, i, e, got)
            else:
                T, after, outcome = self.decide(S, i, e, held); calls.append(('decide', i, token, (e, held)))
                what = outcome if outcome else after.phase
                yield 'i%d decides e%d: %s' % (i, e, what), self.hold(T, i, e, after)
            if self.dead_letters and S.faults and S.events[e] == i and not (self.dead_release == 'fetch' and any(
                    S.mark[b] == ('?', e) and b not in held.yes and b not in [n[0] for n in held.no] for b in self.spec[e][3])):
                yield 'FAULT i%d gives up e%d' % (i, e), self.hold(self.dead_letter(S._replace(faults=S.faults - 1), e, held), i, e, None)
        for h, books, owner in S.handoffs:
            if owner != i: continue
            calls.append(('shelve', i, token, (h, books)))
            yield 'i%d shelves hand-off %s' % (i, h), self.shelve(S, h, books)
            if self.half and S.faults:
                yield 'FAULT the reference shelver puts %s back and dies before XACK' % (books,), S._replace(
                    shelf=tuple(None if b in books else x for b, x in enumerate(S.shelf)), faults=S.faults - 1)

    def misfortunes(self, T, i, calls):
        lease, proc = T.inst[i]
        if proc > 0 and lease == proc and 'expire' in self.kinds:
            L = T._replace(inst=put(T.inst, i, (0, proc)))
            if self.fence: L = L._replace(held=put(T.held, i, (None,) * len(self.spec)))  # of no use to it any more
            yield 'FAULT i%d loses its lease' % i, L
            for c in calls: yield 'FAULT i%d loses its lease with %s under way' % (i, self.say(c)), L._replace(late=T.late + (c,))
        if proc > 0 and lease and 'crash' in self.kinds:
            C = T._replace(inst=put(T.inst, i, (lease, -proc)), held=put(T.held, i, (None,) * len(self.spec)))
            yield 'FAULT i%d crashes' % i, C
            for c in calls: yield 'FAULT i%d crashes with %s under way' % (i, self.say(c)), C._replace(late=T.late + (c,))
        if proc > 0 and lease == proc and 'io' in self.kinds:
            for c in calls:
                I = T._replace(late=T.late + (c,))
                yield 'FAULT i%d: I/O error with %s under way' % (i, self.say(c)), self.begin_anew(I, i, proc + 1) if self.token_per_connection else I

    def regroups(self, T):
        """A group is destroyed and made anew at 0: all that is undecided is delivered again."""
        if self.epoch: T = T._replace(inst=tuple((0, p) for _, p in T.inst), held=((None,) * len(self.spec),) * self.instances)
        for kind in ('req', 'ret'):
            yield 'FAULT group of %s made anew' % kind, T._replace(events=tuple(
                'q' if self.kind(e) == kind and isinstance(o, int) else o for e, o in enumerate(T.events)))
        yield 'FAULT group of shelving made anew', T._replace(handoffs=tuple(h[:2] + (NOBODY,) for h in T.handoffs))

    # ---- what must hold

    def check(self, S):
        if len(S.storage) > self.capacity: raise Violation('storage over its capacity')
        for b in range(self.books):
            m, inside = S.mark[b], S.lent[b] >= 0 or b in S.storage
            if (S.lent[b] >= 0) + (b in S.storage) + sum(b in t for t in S.temp) + sum(b in h[1] for h in S.handoffs) > 1:
                raise Violation('book %d in two places' % b)
            if inside and S.shelf[b] is None: raise Violation('book %d lent or stored, yet on its shelf' % b)
            if inside and m and m[0] == '?' and not self.foreign and not self.sweep: raise Violation('book %d reserved and lent or stored' % b)
            if m and m[0] == '?' and S.events[m[1]] == 'd' and not self.sweep: raise Violation('book %d reserved by a decided request' % b)
        for u in range(2):
            if S.count[u] != S.lent.count(u): raise Violation('count of user %d' % u)
            if S.count[u] > self.limit: raise Violation('user %d over the limit' % u)
        for i, hands in enumerate(S.held):
            for e, held in enumerate(hands):
                if held and S.events[e] == i and self.pending in ('me', 'first') and held.phase in ('wait', 'gate', 'drain') and ('?', e) in S.mark:
                    raise Violation('event %d waits and holds a reservation' % e)

    def at_rest(self, S):
        return all(x == 'd' for x in S.events) and not S.handoffs and not S.late and not self.midway(S) and not (
            self.sweep and any(m and m[0] == '?' for m in S.mark)) and not any(
            held and held.yes for hands in S.held for held in hands)

    def check_rest(self, S):
        if None in S.outcome: raise Violation('event without outcome')
        if any(m and m[0] != '=' for m in S.mark) or any(S.temp): raise Violation('reservation left at rest')
        for b in range(self.books):
            if b not in self.nowhere and (S.shelf[b] is not None) != (S.lent[b] >= 0 or b in S.storage):
                raise Violation('at rest: book %d fetched for %s, lent to %s, storage %s' % (b, S.shelf[b], S.lent[b], S.storage))
        if self.must and not self.must(S.outcome): raise Violation('outcomes %s' % (S.outcome,))


def explore(name, model, max_states=500000, seconds=600):
    """Prints and returns (name, number of states, verdict); `ends`: different ways in which all came to rest."""
    began = time.time()
    S = model.start()
    index, parent, label, states, after, ends = {S: 0}, [None], [None], [S], [], set()
    verdict, cut, n = None, False, 0

    def history(n):
        lines = []
        while parent[n] is not None: lines.append(label[n]); n = parent[n]
        return ''.join('\n      ' + line for line in reversed(lines))

    while n < len(states) and not verdict and not cut:
        S, out = states[n], []
        try:
            model.check(S)
            if model.at_rest(S): model.check_rest(S); ends.add((S.outcome, S.lent, S.storage))
            for step, T in model.steps(S):
                if T == S: continue
                j = index.get(T)
                if j is None:
                    j = index[T] = len(states)
                    states.append(T); parent.append(n); label.append(step)
                out.append((j, step))
        except Violation as bad:
            verdict = 'VIOLATION: %s%s' % (bad, history(n))
        after.append(out); n += 1
        cut = len(states) > max_states or time.time() - began > seconds
    if not verdict and not cut:
        verdict = stuck(model, states, after, history) or cycle(after, history) or 'ok'
    verdict = verdict or 'CUT'
    print('%-44s %7d states %5.1fs %2d ends  %s' % (name, len(states), time.time() - began, len(ends), verdict), flush=True)
    return name, len(states), verdict


def stuck(model, states, after, history):
    """A state from which rest cannot be reached without a further fault."""
    before = [[] for _ in states]
    for a, out in enumerate(after):
        for b, step in out:
            if not step.startswith('FAULT'): before[b].append(a)
    good = [model.at_rest(S) for S in states]
    todo = [a for a, g in enumerate(good) if g]
    while todo:
        for a in before[todo.pop()]:
            if not good[a]: good[a] = True; todo.append(a)
    if not all(good):
        a = good.index(False)
        return 'STUCK (%d states cannot reach rest), first:%s\n      %s' % (good.count(False), history(a), states[a])


def cycle(after, history):
    """A way to go round for ever (Kahn's algorithm leaves the cycles, a depth-first walk shows one)."""
    degree = [0] * len(after)
    for out in after:
        for b, _ in out: degree[b] += 1
    todo = [a for a, d in enumerate(degree) if not d]
    while todo:
        for b, _ in after[todo.pop()]:
            degree[b] -= 1
            if not degree[b]: todo.append(b)
    left = {a for a, d in enumerate(degree) if d}
    if not left: return None
    a = min(left)
    path, place, dead, labels = [a], {a: 0}, set(), []
    ways = [iter(after[a])]
    while True:
        step = next((x for x in ways[-1] if x[0] in left and x[0] not in dead), None)
        if step is None:
            ways.pop(); a = path.pop(); dead.add(a); del place[a]
            if labels: labels.pop()
            continue
        b, what = step
        labels.append(what)
        if b in place: return 'CYCLE after%s\n      goes round: %s' % (history(b), ' ; '.join(labels[place[b]:]))
        place[b] = len(path); path.append(b); ways.append(iter(after[b]))


def explore_one(job):
    name, events, books, knobs = job
    return explore(name, Model(events, books, **knobs))
