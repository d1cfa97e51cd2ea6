/** What a command says: results on stdout, everything else on stderr. */
import { SingleBar } from 'cli-progress';

/** A line of result. */
export function print(line = ''): void {
  process.stdout.write(`${line}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** A line about what is going on. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

export interface Progress {
  update(done: number, total: number): void;
  stop(): void;
}

/** Shows how far `what` is: a bar on a terminal, else a line for every tenth. */
export function showProgress(what: string, unit: 'MB' | '%' = 'MB'): Progress {
  const scale = unit === 'MB' ? 1e6 : 1;
  return process.stderr.isTTY ? progressBar(what, unit, scale) : progressLines(what, unit, scale);
}

function progressBar(what: string, unit: string, scale: number): Progress {
  const bar = new SingleBar({
    format: `${what} [{bar}] {percentage} % | {value} of {total} ${unit}`,
    stream: process.stderr,
    hideCursor: true,
    clearOnComplete: false,
    barsize: 30,
  });
  let started = false;
  return {
    update(done, total) {
      if (!started) bar.start(Math.round(total / scale), 0);
      started = true;
      bar.update(Math.round(done / scale));
    },
    stop() {
      if (started) bar.stop();
    },
  };
}

function progressLines(what: string, unit: string, scale: number): Progress {
  let tenths = 0;
  return {
    update(done, total) {
      const now = total === 0 ? 10 : Math.floor((10 * done) / total);
      if (now <= tenths) return;
      tenths = now;
      note(`${what}: ${now * 10} % of ${Math.round(total / scale)} ${unit}`);
    },
    stop() {},
  };
}
