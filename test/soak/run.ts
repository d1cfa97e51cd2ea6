/**
 * The soak, `make soak`: right answers for those who behave, whatever others do, and nothing left behind. Minutes long; not part
 * of the tests. ARGS=0.1 does a tenth of it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { crowd, disconnects, inTurns, malformed, slowReaders } from './disturbances.ts';
import { clients, type Question, questions } from './questions.ts';
import { type Footprint, Serving } from './serving.ts';

const scale = Number(process.argv[2] ?? 1);
const times = (count: number) => Math.max(1, Math.round(count * scale));
/** Of each kind in all; the load comes in two equal rounds. */
const amounts = { disconnects: times(1000), malformed: times(10_000), kills: times(200), crowdSeconds: times(40) };
/** What allocators may keep of a second round like the first, and V8 before it has to collect; and what is alive in its heap. */
const slackMegabytes = 100;
const slackHeapMegabytes = 3;
const slackFiles = 4;

const rows: (readonly [what: string, value: string, right: boolean])[] = [];
const note = (what: string, value: string | number, right = true) => {
  rows.push([what, String(value), right]);
  process.stderr.write(`${right ? '  ' : '! '}${what}: ${value}\n`);
};

const serving = await Serving.start();
const all = questions(serving.url);
const answers = new Map<Question, string>();
for (const question of all) answers.set(question, await question.ask());
note('questions answered alone', all.length);

/** Asks again and again until `signal`, `width` at once; counts what differs from the answers got alone. */
async function askAll(signal: AbortSignal, width: number): Promise<{ asked: number; wrong: string[] }> {
  const wrong: string[] = [];
  let asked = 0;
  const worker = async () => {
    while (!signal.aborted) {
      const question = all[asked++ % all.length] as Question;
      const answer = await question.ask().catch((error: unknown) => `failed: ${error}`);
      if (answer !== answers.get(question)) wrong.push(`${question.name}: ${answer.slice(0, 200)}`);
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
  return { asked, wrong };
}

interface Prints {
  readonly front: Footprint;
  readonly engine: Footprint;
}

async function prints(): Promise<Prints> {
  await serving.idle();
  // Connections that clients keep open close after some seconds of silence.
  await sleep(6000);
  const front = await serving.footprint(serving.front);
  return { front, engine: await serving.footprint(serving.engines()[0] as number) };
}

/** Uses every page once: memory that was never touched is not yet the process's. */
async function fillCache(pages: number): Promise<void> {
  const { openai } = clients(serving.url);
  const pageTokens = 64;
  const promptPages = 60;
  for (let i = 0; i * promptPages < pages; i++) {
    const prompt = Array.from({ length: promptPages * pageTokens }, (_, at) => 300 + ((at + i) % 700));
    await openai.completions.create({ model: 'nano', prompt, max_tokens: 1 });
  }
}

async function loadRound(round: number): Promise<Prints> {
  const ended = new AbortController();
  const asking = askAll(ended.signal, 8);
  const slow = slowReaders(serving.url, 4, ended.signal);
  const made = await Promise.all([
    disconnects(serving.url, amounts.disconnects / 2, round),
    malformed(serving.url, amounts.malformed / 2, round),
    crowd(serving.url, amounts.crowdSeconds / 2),
  ]).finally(() => ended.abort());
  await slow;
  const { asked, wrong } = await asking;
  note(`round ${round}: left, malformed, in the crowd`, made.join(', '));
  note(`round ${round}: asked beside them, answered otherwise`, `${asked}, ${wrong.length}`, wrong.length === 0);
  for (const each of wrong.slice(0, 5)) process.stderr.write(`    ${each}\n`);
  return prints();
}

/** Kills the engine under four streams; each must end with an error or whole, and the next question be answered right. */
async function kill(index: number): Promise<void> {
  const { openai } = clients(serving.url);
  const stream = async (heard: () => void) => {
    const wanted = { model: 'nano', messages: [{ role: 'user' as const, content: 'Go on' }], max_tokens: 2000 };
    for await (const _ of await openai.chat.completions.create({ ...wanted, temperature: 2, stream: true })) heard();
  };
  const streams: Promise<unknown>[] = [];
  await new Promise<void>((resolve) => {
    for (let i = 0; i < 4; i++)
      streams.push(
        stream(resolve)
          .catch(() => 'told')
          .finally(resolve),
      );
  });
  for (const engine of serving.engines()) process.kill(engine, 'SIGKILL');
  await Promise.all(streams);
  await serving.idle();
  const question = all[index % all.length] as Question;
  const answer = await question.ask();
  if (answer !== answers.get(question)) throw new Error(`after kill ${index}, ${question.name}: ${answer}`);
}

function compare(what: string, before: Footprint, after: Footprint): void {
  const line = (field: keyof Footprint) => `${before[field]} → ${after[field]}`;
  note(`${what}: MB`, line('megabytes'), after.megabytes <= before.megabytes + slackMegabytes);
  const heap = after.heapMegabytes <= before.heapMegabytes + slackHeapMegabytes;
  note(`${what}: snapshot of the heap, MB`, line('heapMegabytes'), heap);
  note(`${what}: open files`, line('files'), after.files <= before.files + slackFiles);
  note(`${what}: threads`, line('threads'), after.threads <= before.threads);
}

let failed: unknown = null;
try {
  const { cache } = await serving.idle();
  await fillCache(cache?.pages.free ?? 0);
  const first = await loadRound(1);
  const second = await loadRound(2);
  compare('front, rounds 1 → 2', first.front, second.front);
  compare('engine, rounds 1 → 2', first.engine, second.engine);
  await inTurns(amounts.kills, 1, kill);
  const { queue, cache: left, engine } = await serving.idle();
  note('engines killed, started again', `${amounts.kills}, ${engine.restarts}`, engine.restarts === amounts.kills);
  note('engines alive', serving.engines().length, serving.engines().length === 1);
  compare('front, before → after the kills', second.front, (await prints()).front);
  const total = (pages: typeof cache) => pages && pages.pages.used + pages.pages.cached + pages.pages.free;
  note('queue: running, waiting', `${queue.running}, ${queue.waiting}`, queue.running + queue.waiting === 0);
  note(
    'pages: in use, all',
    `${left?.pages.used}, ${total(left)}`,
    left?.pages.used === 0 && total(left) === total(cache),
  );
} catch (error) {
  failed = error;
  note('cut short', String(error), false);
}
const code = await serving.end();
note('exit code after SIGTERM', String(code), code === 0);

const width = Math.max(...rows.map(([what]) => what.length));
for (const [what, value, right] of rows)
  process.stdout.write(`${what.padEnd(width)}  ${value}${right ? '' : '   WRONG'}\n`);
if (failed instanceof Error) process.stderr.write(`${failed.stack}\n`);
process.exit(rows.every(([, , right]) => right) ? 0 : 1);
