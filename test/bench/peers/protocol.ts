/** What a peer's process and the benchmark say to each other, over Node's IPC channel: one workload, one time, at a time. */

export interface Workload {
  /** `first-token`: a prompt, until its answer's first token is chosen. */
  readonly kind: 'decode' | 'prefill' | 'first-token';
  readonly tokens: number;
}

/** Tokens of the prompt before the `tokens` of a decode, untimed. */
export const decodePrompt = 16;
/** Positions every peer keeps room for: the longest prompt and its first token, in whole batches of 256. */
export const contextTokens = 2304;

export interface Peer {
  /** What it runs with: version, kernels, settings that matter. */
  readonly settings: string;
  /** Seconds one workload takes. */
  measure(workload: Workload): Promise<number>;
  /** Ends what the process's own end would leave behind. */
  close?(): Promise<void>;
}

export type PeerMessage =
  | { readonly type: 'ready'; readonly settings: string }
  | { readonly type: 'measured'; readonly seconds: number }
  | { readonly type: 'failed'; readonly why: string };

/** A peer's process: loads `argv[2]` for `argv[3]` threads, then measures what it is sent until the channel closes. */
export function servePeer(load: (file: string, threads: number, variant: string) => Promise<Peer>): void {
  const send = (message: PeerMessage) => process.send?.(message);
  const failed = (error: unknown) =>
    send({ type: 'failed', why: error instanceof Error ? error.message : String(error) });
  const [file = '', threads = '1', variant = ''] = process.argv.slice(2);
  load(file, Number(threads), variant).then(
    (peer) => {
      process.on('message', (workload: Workload) => {
        peer.measure(workload).then((seconds) => send({ type: 'measured', seconds }), failed);
      });
      process.on('disconnect', () => void (peer.close?.() ?? Promise.resolve()).finally(() => process.exit()));
      send({ type: 'ready', settings: peer.settings });
    },
    (error) => {
      failed(error);
      process.disconnect?.();
    },
  );
}

/** Seconds of `work`. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
}
