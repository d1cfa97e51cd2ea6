/** A gate that fake steps wait at until it is opened; `arrived` tells when the first has come. */
export function gate() {
  let open = () => {};
  let reached = () => {};
  const arrived = new Promise<void>((resolve) => {
    reached = resolve;
  });
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const beforeStep = (): Promise<void> => {
    reached();
    return opened;
  };
  return { arrived, open, beforeStep };
}
